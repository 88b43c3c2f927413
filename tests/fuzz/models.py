"""Paths to all fields of a request model, however deep, so that a new field is fuzzed without being named here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

__all__ = ["paths", "put"]

Steps = tuple[str, ...]


def paths(model: type[BaseModel], before: Steps = ()) -> Iterator[Steps]:
    """Return the path to each field of the model, and to those of nested models."""
    seen = set()
    for name, field in model.model_fields.items():
        steps = (*before, name)
        yield steps
        for inner in _models(field.annotation):
            for found in paths(inner, steps):
                if found not in seen:
                    seen.add(found)
                    yield found


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def put(body: dict[str, Any], steps: Steps, value: Any) -> dict[str, Any]:
    """Return the body with a value at the end of this path."""
    first, *rest = steps
    inner = body.get(first)
    changed = put(inner if isinstance(inner, dict) else {}, tuple(rest), value) if rest else value
    return {**body, first: changed}
