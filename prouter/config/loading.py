"""Settings of all sources, merged into one validated configuration; error texts when that fails."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from prouter.config.agent import AgentConfig
from prouter.config.errors import ConfigError
from prouter.config.router import RouterConfig
from prouter.config.section import keys, sections
from prouter.config.sources import Setting, from_environ, from_file, from_sets
from prouter.secret_keys import SECRET_KEYS

__all__ = ["load_agent", "load_router"]

Config = TypeVar("Config", RouterConfig, AgentConfig)
Invalid = dict[str, str]
"""What is wrong with each key."""


def load_router(file: str | None, sets: Sequence[str], environ: Mapping[str, str]) -> RouterConfig:
    """Return the router's effective configuration.

    Args:
        file: path of the YAML file, None without one.
        sets: ``key=value`` of each ``--set``.
        environ: environment variables.

    Raises:
        ConfigError: something is wrong; the text has one line for each wrong key.
    """
    return _Loader(RouterConfig, AgentConfig, "router").load(file, sets, environ)


def load_agent(
    file: str | None, sets: Sequence[str], environ: Mapping[str, str], model: type[AgentConfig] = AgentConfig
) -> AgentConfig:
    """Return the agent's effective configuration; the other arguments and errors are those of `load_router`.

    Args:
        model: the configuration, perhaps with the options of runners.
    """
    return _Loader(model, RouterConfig, "agent").load(file, sets, environ)


class _Loader(Generic[Config]):
    """Loads the configuration of one kind of process. It knows the other kind's keys, to say whose a key is."""

    def __init__(self, model: type[Config], other: type[BaseModel], kind: str) -> None:
        self._model: type[Config] = model
        self._kind, self._other_kind = (kind, "agent" if kind == "router" else "router")
        self._keys = dict(keys(model))
        self._other_keys = dict(keys(other))
        self._sections = {name for name, _ in sections(model)}
        self._free = _free_keys(self._keys)
        self._other_free = _free_keys(self._other_keys)

    def load(self, file: str | None, sets: Sequence[str], environ: Mapping[str, str]) -> Config:
        variables = [s for s in from_environ(environ) if self._known(s.key) or not self._is_for_other(s.key)]
        written = (from_file(file, self._free) if file else []) + variables + from_sets(sets)
        settings = [leaf for setting in written for leaf in self._leaves(setting)]
        problems = [self._unknown(setting) for setting in settings if not self._known(setting.key)]
        if problems:
            raise ConfigError("\n".join(problems))
        return self._validated(settings)

    # -- keys ---------------------------------------------------------------------------------------------------

    def _known(self, key: str) -> bool:
        return key in self._keys or _inside(key, self._free)

    def _is_for_other(self, key: str) -> bool:
        """Whether a key of the environment is the other kind's: router and agent may share one environment."""
        return key in self._other_keys or _inside(key, self._other_free)

    def _leaves(self, setting: Setting) -> Iterator[Setting]:
        """Split a setting for a whole section into one for each of its keys."""
        if setting.key not in self._sections:
            yield setting
        elif isinstance(setting.value, dict):
            for name, value in setting.value.items():
                yield from self._leaves(Setting(f"{setting.key}.{name}", value, setting.origin))
        elif setting.value is not None:
            inside = next(key for key in self._keys if key.startswith(f"{setting.key}."))
            raise ConfigError(f"{setting.origin}: {setting.key} is a section; set a key in it, such as {inside}")

    def _unknown(self, setting: Setting) -> str:
        text = f"{setting.origin}: there is no key {setting.key!r}"
        if setting.key in self._other_keys:
            return f"{text}; it is one of the {self._other_kind}'s keys, not the {self._kind}'s"
        near = difflib.get_close_matches(setting.key, self._keys, 1, 0.6)
        leaf = setting.key.rpartition(".")[2]
        near = near or [key for key in self._keys if key.rpartition(".")[2] == leaf]
        if near:
            return f"{text}; did you mean {' or '.join(near)}?"
        nearest = difflib.get_close_matches(setting.key, self._keys, 1, 0.0)[0]
        listing = "prouter config" + (" --agent" if self._kind == "agent" else "")
        return f"{text}; the nearest is {nearest}, '{listing}' shows them all"

    # -- values -------------------------------------------------------------------------------------------------

    def _validated(self, settings: Sequence[Setting]) -> Config:
        winners = {setting.key: setting for setting in settings}
        tree = _tree((setting.key, setting.value) for setting in settings)
        wrong, config = self._validate(tree)
        if config is not None:
            return config
        # A text may look like a literal, such as a token of digits. Where text is expected, it is text.
        as_text = [
            s for s in settings if s.text is not None and s.value is not None and self._field_key(s.key) in wrong
        ]
        still_wrong, config = self._validate(_tree((s.key, s.text if s in as_text else s.value) for s in settings))
        if config is not None:
            return config
        lines = []
        for key, problem in wrong.items():
            if key in still_wrong:
                setting = winners.get(key)
                lines.append(f"{setting.origin}: {key}: {problem}" if setting else f"{key}: {problem}")
        raise ConfigError("\n".join(lines))

    def _validate(self, tree: dict[str, Any]) -> tuple[Invalid, Config | None]:
        try:
            return {}, self._model.model_validate(tree)
        except ValidationError as error:
            wrong: Invalid = {}
            for entry in error.errors():
                location = ".".join(str(part) for part in entry["loc"])
                key = self._field_key(location)
                model = _model_of(self._keys[key]) if key in self._keys else None
                if model is not None:
                    problem = _inner_problem(model, location[len(key) + 1 :], entry["type"], entry["msg"])
                else:
                    problem = self._problem(key, entry["type"], entry["msg"], _at(tree, key))
                wrong.setdefault(key, problem)
            return wrong, None

    def _field_key(self, location: str) -> str:
        """Return the key that holds `location`, which may lie deeper."""
        while location not in self._keys and "." in location:
            location = location.rpartition(".")[0]
        return location

    def _problem(self, key: str, kind: str, message: str, value: Any) -> str:
        if kind == "value_error":
            return message.removeprefix("Value error, ")
        expected = f"{_expected(self._keys[key])} is expected"
        return expected if key in SECRET_KEYS else f"{expected}, got {value!r}"


def _free_keys(known: Mapping[str, FieldInfo]) -> frozenset[str]:
    """Return the keys whose value is a mapping, with names of the user's own or those that its own model checks."""
    return frozenset(key for key, field in known.items() if _takes_mapping(field.annotation) or _model_of(field))


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the model that checks a key's value, if its fields are no keys of their own."""
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _inner_problem(model: type[BaseModel], field: str, kind: str, message: str) -> str:
    """Say what is wrong with a value that `model` checks, or with one of its fields."""
    if kind == "extra_forbidden":
        return f"there is no field {field!r}; those are {', '.join(model.model_fields)}"
    if field:
        return f"{field}: {message.removeprefix('Value error, ')}"
    return f"a mapping of {', '.join(model.model_fields)} is expected"


def _takes_mapping(annotation: Any) -> bool:
    return get_origin(annotation) is dict or any(get_origin(part) is dict for part in get_args(annotation))


def _inside(key: str, free: frozenset[str]) -> bool:
    return any(key.startswith(f"{name}.") for name in free)


def _tree(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in pairs:
        node = tree
        *outer, leaf = key.split(".")
        for section in outer:
            inner = node.get(section)
            node[section] = node = dict(inner) if isinstance(inner, dict) else {}
        node[leaf] = value
    return tree


def _at(tree: dict[str, Any], key: str) -> Any:
    value: Any = tree
    for part in key.split("."):
        value = value[part]
    return value


def _expected(field: FieldInfo) -> str:
    """Return in words what values a key takes."""
    return f"{_type_in_words(field.annotation)}{_bounds_in_words(field.metadata)}"


def _type_in_words(annotation: Any) -> str:
    simple = {int: "a whole number", float: "a number", bool: "True or False", str: "text", type(None): "None"}
    if annotation in simple:
        return simple[annotation]
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(str, get_args(annotation)))
    if get_origin(annotation) is tuple:
        return "a list of texts, such as ['a', 'b'],"
    if get_origin(annotation) is dict:
        return "a mapping of names to values"
    return " or ".join(_type_in_words(part) for part in get_args(annotation))


def _bounds_in_words(metadata: Sequence[Any]) -> str:
    low = next((m.ge for m in metadata if isinstance(m, annotated_types.Ge)), None)
    high = next((m.le for m in metadata if isinstance(m, annotated_types.Le)), None)
    above = next((m.gt for m in metadata if isinstance(m, annotated_types.Gt)), None)
    if above is not None:
        return f" above {above}"
    if low is not None:
        return f" from {low} to {high}" if high is not None else f" of at least {low}"
    return ""
