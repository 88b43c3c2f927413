"""Texts of validation errors, for clients who know JSON and no Python."""

from __future__ import annotations

import difflib
from typing import get_args

from pydantic import BaseModel, ValidationError

__all__ = ["explain"]

_EXPLAINED = 10
"""Wrong keys that an error names, at most."""
_EXPLANATION = 300
"""Characters about each of them, at most."""


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return what is wrong with a body, in one line: ``Invalid request: env.PORT: Input should be a valid string``.

    Only the first few errors are named: a body may have thousands.
    """
    items = error.errors(include_url=False, include_context=False, include_input=False)
    parts = []
    for item in items[:_EXPLAINED]:
        where = ".".join(str(step) if str(step).isprintable() else repr(step) for step in item["loc"])
        told = _told(item["type"], item["msg"].removeprefix("Value error, "), item["loc"], model)
        parts.append(_cut(f"{_cut(where)}: {told}" if where else told))
    if len(items) > _EXPLAINED:
        parts.append(f"and {len(items) - _EXPLAINED} more")
    return "Invalid request: " + "; ".join(parts)


def _told(kind: str, message: str, place: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """Return one of pydantic's messages in the words of JSON."""
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return "Input should be an object, {…}"
    if kind in ("list_type", "tuple_type"):
        return "Input should be a list, […]"
    if kind == "union_tag_invalid":  # pydantic's message repeats the input, which may be a secret in the wrong place
        return f"Input should be an object of one of the types {message.rpartition('tags: ')[2]}"
    if kind != "extra_forbidden":
        return message
    known = _keys_at(place[:-1], model)
    near = difflib.get_close_matches(str(place[-1])[:_EXPLANATION], known, 1)
    return "no such key" + (
        f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}" if known else ""
    )


def _keys_at(place: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """Return the keys of the object at `place`; none if objects of several kinds may be there."""
    for step in place:
        field = model.model_fields.get(str(step))
        kinds = () if field is None else get_args(field.annotation) or (field.annotation,)
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if len(inner) != 1:
            return []
        model = inner[0]
    return list(model.model_fields)


def _cut(text: str) -> str:
    return text if len(text) <= _EXPLANATION else text[: _EXPLANATION - 1] + "…"
