"""Boxes of CURVE, sealed and opened by libsodium in place, without copies.

A box is a Poly1305 tag followed by a text encrypted with XSalsa20 (libsodium's ``crypto_box`` with a precomputed key).
PyNaCl's own functions return new bytes, for which they clear memory and copy twice, and check lengths that are known
here. This module calls the same functions of libsodium, which allow for text and box in the same memory
(doc.libsodium.org, "Notes" of "Authenticated encryption"). PyNaCl does not document its binding to them, ``_sodium``,
on which all its functions rest; `tests/unit/transport/zmtp/test_boxes.py` tells if another version has another one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nacl._sodium import ffi, lib

from prouter.errors import ProtocolError

__all__ = ["TAG", "open_box", "open_in_place", "seal_in_place"]

TAG = 16
"""Bytes of a box before its encrypted text."""

_NONCE, _KEY = 24, 32
_seal, _open = lib.crypto_box_easy_afternm, lib.crypto_box_open_easy_afternm
_uncleared = ffi.new_allocator(should_clear_after_alloc=False)


def seal_in_place(memory: bytearray, boxes: Iterable[tuple[int, int, bytes]], key: bytes) -> None:
    """Encrypt texts, each in its place.

    Args:
        memory: holds, for each box, `TAG` free bytes for the tag and then the text; both become the box.
        boxes: for each box the offset where it begins, the length of its text, and its nonce.
        key: shared by both ends.

    Raises:
        ValueError: a length or an offset is wrong; libsodium does not check them.
    """
    base = ffi.from_buffer(memory)
    for at, size, nonce in boxes:
        if at < 0 or at + TAG + size > len(memory):
            raise ValueError(f"a box of {TAG + size} bytes at {at} is not within {len(memory)} bytes")
        _check(nonce, key)
        _seal(base + at, base + at + TAG, size, nonce, key)


def open_box(box: bytes, nonce: bytes, key: bytes) -> Any:
    """Return the text of a box as a buffer, whose items and slices are bytes.

    Raises:
        ProtocolError: it was made with another key, or changed on the way.
        ValueError: nonce or key has not the right length.
    """
    _check(nonce, key)
    size = len(box)
    text = _uncleared("unsigned char[]", size)
    if size < TAG or _open(text, box, size, nonce, key):
        raise _changed()
    return ffi.buffer(text, size - TAG)


def open_in_place(memory: memoryview, nonce: bytes, key: bytes) -> memoryview:
    """Return the text of a box, which takes the box's place.

    Raises:
        ProtocolError: as `open_box`; the box is as it was.
        ValueError: as `open_box`.
    """
    _check(nonce, key)
    size, base = len(memory), ffi.from_buffer(memory)
    if size < TAG or _open(base + TAG, base, size, nonce, key):
        raise _changed()
    return memory[TAG:]


def _check(nonce: bytes, key: bytes) -> None:
    if len(nonce) != _NONCE or len(key) != _KEY:
        raise ValueError(f"a nonce of {len(nonce)} bytes, a key of {len(key)}")


def _changed() -> ProtocolError:
    return ProtocolError("the other end has other keys, or somebody changed what it sent")
