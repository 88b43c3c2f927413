"""Messages between agent and keeper: JSON objects, each after its length (u32, little-endian), over a unix socket.

Requests are ``{"id": int, "op": str, …}``; each gets one reply, ``{"id", "result"}`` or ``{"id", "error": {"code",
"text"}}``, in whatever order they are done. What the keeper says by itself is ``{"event": str, …}``. Text that is not
UTF-8 (file names, environment) travels as lone surrogates (PEP 383), which JSON's \\u escapes carry.
"""

from __future__ import annotations

import json
import struct
from typing import Any

__all__ = ["PROTOCOL", "Decoder", "encode"]

PROTOCOL = 1
"""Version of the messages; an agent that meets a keeper of another version has it end its jobs, and starts its own."""

LARGEST = 64 << 20
"""Bytes a message may have: the list of all jobs with their records is the longest."""

_LENGTH = struct.Struct("<I")


def encode(message: dict[str, Any]) -> bytes:
    """The message as bytes to send.

    Raises:
        ValueError: it is too long, or holds what JSON cannot.
    """
    body = json.dumps(message, separators=(",", ":")).encode("ascii")
    if len(body) > LARGEST:
        raise ValueError(f"a message of {len(body)} bytes is over the limit of {LARGEST}")
    return _LENGTH.pack(len(body)) + body


class Decoder:
    """Turns received bytes back into messages."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Take in what was received; gives the messages that are complete now.

        Raises:
            ValueError: what came is no such message; the connection is of no further use.
        """
        self._data += data
        messages = []
        at = 0
        while len(self._data) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._data, at)
            if length > LARGEST:
                raise ValueError(f"a message of {length} bytes is over the limit of {LARGEST}")
            end = at + _LENGTH.size + length
            if len(self._data) < end:
                break
            message = json.loads(self._data[at + _LENGTH.size : end])
            if not isinstance(message, dict):
                raise ValueError("a message is not a JSON object")
            messages.append(message)
            at = end
        del self._data[:at]
        return messages
