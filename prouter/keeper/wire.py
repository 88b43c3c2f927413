"""Messages between agent and keeper: JSON objects over a unix socket, each after its length (u32, little-endian).

Requests are ``{"id": int, "op": str, …}``; each gets one reply, ``{"id", "result"}`` or ``{"id", "error": {"code",
"text"}}``, in any order. Other messages of the keeper are events, ``{"event": str, …}``. Text that is not
UTF-8 (file names, environment) travels as lone surrogates (PEP 383), which JSON's \\u escapes carry.
"""

from __future__ import annotations

import json
import struct
from typing import Any

__all__ = ["PROTOCOL", "Decoder", "encode"]

PROTOCOL = 1
"""Version of the messages. An agent has a keeper of another version end its jobs, and starts its own keeper."""

LARGEST = 64 << 20
"""Most bytes of a message. The longest is the list of all jobs with their records."""

_LENGTH = struct.Struct("<I")


def encode(message: dict[str, Any]) -> bytes:
    """Encode a message.

    Raises:
        ValueError: it is too long, or JSON cannot hold it.
    """
    body = json.dumps(message, separators=(",", ":")).encode("ascii")
    if len(body) > LARGEST:
        raise ValueError(f"a message of {len(body)} bytes is over the limit of {LARGEST}")
    return _LENGTH.pack(len(body)) + body


class Decoder:
    """Decodes received bytes into messages."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Take received bytes; return the messages that are complete now.

        Raises:
            ValueError: the bytes are no message. The connection cannot be used any more.
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
