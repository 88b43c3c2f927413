"""Putting packed msgpack values together without unpacking them: long answers whose parts seldom change.

Source: the msgpack specification. The head of a map or list says how many entries follow as they are.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack

__all__ = ["join_maps", "pack_list", "pack_map", "pack_value"]

_FIXMAP = 0x80
_MAP32 = b"\xdf"
_LIST32 = b"\xdd"
_FIXMAP_MOST = 15


def pack_value(value: Any) -> bytes:
    """Any value, packed."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def pack_list(values: Sequence[bytes]) -> bytes:
    """A list of packed values."""
    return b"".join([_LIST32, struct.pack(">I", len(values)), *values])


def pack_map(entries: Mapping[str, bytes]) -> bytes:
    """A map of packed values."""
    parts = [_MAP32, struct.pack(">I", len(entries))]
    for name, value in entries.items():
        parts += (pack_value(name), value)
    return b"".join(parts)


def join_maps(one: bytes, other: bytes) -> bytes:
    """One map of two packed ones without common keys, each of at most 15 entries and together as well.

    Raises:
        ValueError: they are larger, or no maps.
    """
    count = one[0] - _FIXMAP + other[0] - _FIXMAP
    if not (one[0] & 0xF0 == other[0] & 0xF0 == _FIXMAP and count <= _FIXMAP_MOST):
        raise ValueError("only small maps can be joined")
    return bytes([_FIXMAP + count]) + one[1:] + other[1:]
