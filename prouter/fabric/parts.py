"""Long lists in several messages: each part small enough to be taken, and to keep nobody else waiting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prouter.fabric.frames import pack_body

__all__ = ["PART_BYTES", "PART_ITEMS", "in_parts"]

PART_ITEMS = 200
"""Items of one part."""
PART_BYTES = 256 * 1024
"""Bytes of one part, unless a single item has more."""


def in_parts(items: Iterable[dict[str, Any]]) -> Iterator[tuple[list[dict[str, Any]], bool]]:
    """The items in parts, each with whether it is the last; there always is one."""
    part: list[dict[str, Any]] = []
    size = 0
    for item in items:
        length = len(pack_body(item))
        if part and (size + length > PART_BYTES or len(part) == PART_ITEMS):
            yield part, False
            part, size = [], 0
        part.append(item)
        size += length
    yield part, True
