"""Where settings come from: a YAML file with the line of each key, environment variables, ``--set`` options."""

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
    """One key and its value as somebody wrote it.

    Attributes:
        key: dotted.
        origin: where it was written, for messages: ``router.yaml:7``, ``PROUTER_LOG__LEVEL``, ``--set``.
        text: how it was written, where the value was made from text.
    """

    key: str
    value: Any
    origin: str
    text: str | None = None

    @property
    def may_be_text(self) -> bool:
        """Whether `text` itself can have been meant."""
        return self.text is not None and self.value is not None


def from_file(file: str, whole: frozenset[str]) -> list[Setting]:
    """The settings of a YAML file, in its order; keys may be nested or dotted.

    Args:
        whole: keys whose value is a mapping.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or says something twice.
    """
    try:
        loader = yaml.SafeLoader(Path(file).read_bytes())
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not a text file: {error}") from error
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
    """YAML forbids a key twice in one mapping; PyYAML lets the last one win in silence."""
    lines: dict[str, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key, line = f"{prefix}{loader.construct_object(key_node)}", key_node.start_mark.line + 1
        if key in lines:
            raise ConfigError(f"{file}:{line}: {key} is here for the second time, after line {lines[key]}")
        lines[key] = line


def from_environ(environ: Mapping[str, str]) -> list[Setting]:
    """The settings in variables like ``PROUTER_CONTROL__PORT``; values are Python literals, anything else is text."""
    return [
        Setting(name.removeprefix(_PREFIX).lower().replace("__", "."), _literal(value), name, value)
        for name, value in sorted(environ.items())
        if name.startswith(_PREFIX) and "__" in name
    ]


def from_sets(sets: Sequence[str]) -> list[Setting]:
    """The settings of ``--set key=value`` options; values are Python literals, anything else is text.

    Raises:
        ConfigError: one has no ``=``.
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
