"""Sources of settings: a YAML file (with the line of each key), environment variables, ``--set`` options."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prouter.config.errors import ConfigError

__all__ = ["Setting", "from_environ", "from_file", "from_sets"]

_PREFIX = "PROUTER_"


@dataclass(frozen=True, slots=True)
class Setting:
    """One key with its value, and the place where it was set.

    Attributes:
        key: the dotted name.
        value: the value, as the YAML parser or the Python literal gives it.
        origin: the place, for messages: ``router.yaml:7``, ``PROUTER_LOG__LEVEL``, ``--set``.
        text: the text that the value was made from, None for one of a file.
    """

    key: str
    value: Any
    origin: str
    text: str | None = None

    @property
    def may_be_text(self) -> bool:
        """Whether the user may have meant the text itself rather than the literal that it looks like."""
        return self.text is not None and self.value is not None


def from_file(file: str, whole: frozenset[str]) -> list[Setting]:
    """Return the settings of a YAML file, in its order; keys may be nested or dotted.

    Args:
        whole: keys whose value is a mapping, so that the names in it are no keys.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or sets a key twice.
    """
    try:
        loader = yaml.SafeLoader(Path(file).read_bytes())
    except OSError as error:
        raise ConfigError(f"{file}: the configuration file cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: a YAML file is expected, this is no text: {error}") from error
    try:
        root = loader.get_single_node()
        settings = list(_walk(loader, root, file, "", whole)) if root is not None else []
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{file}:{line}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: {error}") from error
    finally:
        loader.dispose()
    return settings


def _walk(loader: yaml.SafeLoader, node: yaml.Node, file: str, prefix: str, whole: frozenset[str]) -> Iterator[Setting]:
    if not isinstance(node, yaml.MappingNode):
        line = node.start_mark.line + 1
        raise ConfigError(f"{file}:{line}: keys and values are expected, such as 'control.port: 8888'")
    _refuse_repeats(loader, node, file, prefix)
    loader.flatten_mapping(node)
    for key_node, value_node in node.value:
        key = f"{prefix}{loader.construct_object(key_node)}"
        if isinstance(value_node, yaml.MappingNode) and key not in whole and not _inside(key, whole):
            yield from _walk(loader, value_node, file, f"{key}.", whole)
        else:
            value = loader.construct_object(value_node, deep=True)
            yield Setting(key, value, f"{file}:{key_node.start_mark.line + 1}")


def _inside(key: str, whole: frozenset[str]) -> bool:
    return any(key.startswith(f"{name}.") for name in whole)


def _refuse_repeats(loader: yaml.SafeLoader, node: yaml.MappingNode, file: str, prefix: str) -> None:
    """Refuse a key that a mapping has twice; YAML forbids it, and PyYAML silently takes the last value."""
    lines: dict[str, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key, line = f"{prefix}{loader.construct_object(key_node)}", key_node.start_mark.line + 1
        if key in lines:
            raise ConfigError(f"{file}:{line}: {key} is here for the second time, after line {lines[key]}; remove one")
        lines[key] = line


def from_environ(environ: Mapping[str, str]) -> list[Setting]:
    """Return the settings in variables such as ``PROUTER_CONTROL__PORT``; a value is a Python literal, or else text."""
    return [
        Setting(name.removeprefix(_PREFIX).lower().replace("__", "."), _literal(value), name, value)
        for name, value in sorted(environ.items())
        if name.startswith(_PREFIX) and "__" in name
    ]


def from_sets(sets: Sequence[str]) -> list[Setting]:
    """Return the settings of ``--set key=value`` options; a value is a Python literal, or else text.

    Raises:
        ConfigError: an option has no ``=``.
    """
    settings = []
    for item in sets:
        key, separator, value = item.partition("=")
        if not separator or not key.strip():
            raise ConfigError("--set: 'key=value' is expected" + (f", got {key!r}" if not separator else ""))
        settings.append(Setting(key.strip(), _literal(value), "--set", value))
    return settings


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
