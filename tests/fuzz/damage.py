"""Damage to bytes, drawn from a seed: cuts, flips, repetitions, foreign pieces."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

__all__ = ["damaged", "pieces"]

_NUMBERS = [
    b"\0",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\xff" * 8,
    b"\x80" + bytes(7),
    b"-1",
    b"0",
    b"9" * 20,
    b"\xc1",
    b"\xdf",
]


def damaged(random: Random, data: bytes, foreign: Sequence[bytes] = (b"",)) -> bytes:
    """Return `data` with one to eight changes; `foreign` are pieces that mean something in its format."""
    changed = bytearray(data)
    for _ in range(random.choice([1, 1, 2, 3, 8])):
        at = random.randrange(len(changed) + 1)
        end = at + random.choice([0, 1, 2, 4, 8, 64])
        kind = random.randrange(7)
        if kind == 0:
            del changed[at:]
        elif kind == 1:
            del changed[at:end]
        elif kind == 2:
            changed[at : at + 1] = random.randbytes(1)
        elif kind == 3:
            changed[at:at] = random.randbytes(random.choice([1, 4, 300]))
        elif kind == 4:
            changed[at:at] = changed[random.randrange(len(changed) + 1) :][: random.choice([1, 20, 400])]
        elif kind == 5:
            changed[at:end] = random.choice(_NUMBERS)
        else:
            changed[at:end] = random.choice(list(foreign))
    return bytes(changed)


def pieces(random: Random, data: bytes) -> list[bytes]:
    """Return `data` in pieces, as a network may deliver it."""
    found = []
    while data:
        size = random.choice([1, 2, 7, 100, len(data)])
        found.append(data[:size])
        data = data[size:]
    return found
