"""Long lists, sent as several events.

Each part is small enough for its receiver to accept, and short enough that other events get in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prouter.fabric.frames import pack_body

__all__ = ["PART_BYTES", "PART_ITEMS", "in_parts"]

PART_ITEMS = 200
"""Items in one part, at most."""
PART_BYTES = 256 * 1024
"""Encoded bytes of one part, at most; a single item may have more."""


def in_parts(items: Iterable[dict[str, Any]]) -> Iterator[tuple[list[dict[str, Any]], bool]]:
    """Yield the items in parts, each with whether it is the last one; no items are one empty part."""
    part: list[dict[str, Any]] = []
    size = 0
    for item in items:
        length = len(pack_body(item))
        if part and (size + length > PART_BYTES or len(part) == PART_ITEMS):
            yield part, False
            part, size = [], 0
        part.append(item)
        size += length
    # Even if it is empty: the receiver waits for a last part to know that the list is complete.
    yield part, True
