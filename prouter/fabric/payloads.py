"""Payloads of stream frames: why a stream was reset, and the roster of a peer's streams.

Both come from a peer that may be hostile: what is decoded here is bounded and safe to log and to put into headers.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from hashlib import blake2b

from prouter.errors import ProtocolError
from prouter.fabric.frames import RESET, Frame, pack_body, unpack_body

__all__ = ["pack_roster", "process_number", "read_reset", "reset_frame", "unpack_roster"]

_MAX_ROSTER = 8 * 131_072
"""Bytes of a roster: twice as many streams as an acceptor allows by default, 8 bytes each."""
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""What the code of a RESET may be: it becomes a header field, so no line breaks and nothing long."""
_MAX_TEXT = 4096
"""Characters of a RESET's text that are kept; it becomes a page or a log line."""


def process_number(process: str) -> int:
    """Return the 64 bits that stand for a process in a RESUME of stream 0; 0 when `process` is empty."""
    # A hash rather than the text: the field has 64 bits, and nobody has to keep numbers unique.
    return int.from_bytes(blake2b(process.encode(), digest_size=8).digest(), "little") if process else 0


def pack_roster(sids: Iterable[int]) -> bytes:
    """Encode the ids of all streams that this end knows: u64 little-endian each."""
    known = list(sids)
    return struct.pack(f"<{len(known)}Q", *known)


def unpack_roster(payload: bytes) -> frozenset[int]:
    """Decode a roster.

    Raises:
        ProtocolError: its length is no multiple of 8, or above the limit.
    """
    if len(payload) % 8 or len(payload) > _MAX_ROSTER:
        raise ProtocolError(f"a roster of {len(payload)} bytes: each stream takes 8, all at most {_MAX_ROSTER}")
    return frozenset(struct.unpack(f"<{len(payload) // 8}Q", payload))


def reset_frame(sid: int, code: str, text: str, consumed: int = 0) -> Frame:
    """Make a RESET.

    Args:
        consumed: the position up to which this end consumed the peer's bytes. After a reset nobody acknowledges any
            more, and some senders have to know how much of what they wrote was used.
    """
    return Frame(RESET, 0, sid, 0, consumed, pack_body({"code": code, "text": text}))


def read_reset(payload: bytes) -> tuple[str, str]:
    """Return code and text of a RESET; a code of the wrong form becomes ``reset``, a text that is none is empty.

    Raises:
        ProtocolError: the payload is no map.
    """
    body = unpack_body(payload)
    code, text = body.get("code"), body.get("text")
    usable = isinstance(code, str) and _CODE.fullmatch(code) is not None
    return str(code) if usable else "reset", text[:_MAX_TEXT] if isinstance(text, str) else ""
