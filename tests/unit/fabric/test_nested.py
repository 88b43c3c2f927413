"""How deep values are nested."""

from __future__ import annotations

from typing import Any

import pytest

from prouter.fabric.bounds import MAX_NESTED, nested


def chain(levels: int) -> dict[str, Any]:
    """Maps in lists in maps, so many levels in all."""
    value: Any = "the end"
    for level in range(levels):
        value = {"next": value} if level % 2 == levels % 2 - 1 or level == levels - 1 else [value, 1]
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize(
    ("value", "levels"),
    [({}, 1), ({"a": 1, "b": "text"}, 1), ({"a": []}, 2), ({"a": 1, "b": {"c": [[]]}}, 4), (chain(7), 7)],
)
def test_levels_are_counted_along_the_deepest_way(value: dict[str, Any], levels: int) -> None:
    assert nested(value) == levels


def test_what_is_deeper_than_the_bound_is_looked_into_no_further() -> None:
    assert nested(chain(MAX_NESTED)) == MAX_NESTED
    assert nested(chain(MAX_NESTED + 1)) == nested(chain(100_000)) == MAX_NESTED + 1
