"""The beginning of a ZMTP connection: greeting, commands and properties; and heads of frames.

Source: rfc.zeromq.org/spec/23.
"""

from __future__ import annotations

import struct

from prouter.errors import ProtocolError

__all__ = [
    "COMMAND",
    "GREETING_SIZE",
    "LONG",
    "LONG_HEAD",
    "MECHANISM",
    "MORE",
    "SHORT",
    "SIGNATURE_END",
    "VERSION",
    "frame_head",
    "greeting",
    "next_command",
    "opening",
    "properties",
    "read_properties",
]

MORE, LONG, COMMAND = 1, 2, 4
_LENGTH = struct.Struct(">I")
LONG_HEAD = struct.Struct(">BQ")
SHORT = 255
"""Most bytes of a frame whose length field has one byte."""
_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
_VERSION_3_0 = b"\x03\x00"
_NAME = 20
"""Bytes of a mechanism's name."""
GREETING_SIZE = 64
MECHANISM = slice(12, 32)
SIGNATURE_END, VERSION = 9, 10


def greeting(mechanism: bytes, *, server: bool = False) -> bytes:
    """Return the 64 bytes with which either side begins."""
    return (_SIGNATURE + _VERSION_3_0 + mechanism.ljust(_NAME, b"\0") + bytes((server,))).ljust(GREETING_SIZE, b"\0")


_NULL_GREETING = greeting(b"NULL")


def properties(kind: bytes, identity: bytes) -> bytes:
    """Return the properties of this end for a handshake: the socket's type and routing id."""
    return _property(b"Socket-Type", kind) + _property(b"Identity", identity)


def opening(kind: bytes, identity: bytes = b"") -> bytes:
    """Return what either side sends first without encryption: the greeting and READY."""
    body = b"\x05READY" + properties(kind, identity)
    return _NULL_GREETING + frame_head(COMMAND, len(body)) + body


def next_command(data: bytes, at: int, most: int) -> tuple[bytes, int] | None:
    """Return a handshake's command that begins at `at`, and where it ends; None while it has not arrived whole.

    Raises:
        ProtocolError: there is no command, or one of more than `most` bytes.
    """
    if len(data) < at + 2:
        return None
    flags = data[at]
    start, length = at + 2, data[at + 1]
    if flags & ~LONG != COMMAND:
        raise ProtocolError("the other end does not begin with a command")
    if flags & LONG:
        start = at + LONG_HEAD.size
        if len(data) < start:
            return None
        length = LONG_HEAD.unpack_from(data, at)[1]
    if length > most:
        raise ProtocolError(f"the other end begins with a command of {length} bytes")
    end = start + length
    return (data[start:end], end) if len(data) >= end else None


def read_properties(body: bytes, at: int) -> dict[bytes, bytes]:
    """Return the properties in a command's body from `at` on: each a name, a length and a value.

    Raises:
        ProtocolError: they are malformed.
    """
    found: dict[bytes, bytes] = {}
    while at < len(body):
        name_end = at + 1 + body[at]
        start = name_end + _LENGTH.size
        if start > len(body):
            raise ProtocolError("malformed properties")
        end = start + _LENGTH.unpack_from(body, name_end)[0]
        if end > len(body):
            raise ProtocolError("malformed properties")
        found[body[at + 1 : name_end].lower()] = body[start:end]
        at = end
    return found


def frame_head(flags: int, length: int) -> bytes:
    """Return what a frame begins with, before its body of `length` bytes."""
    return bytes((flags, length)) if length <= SHORT else LONG_HEAD.pack(flags | LONG, length)


def _property(name: bytes, value: bytes) -> bytes:
    return bytes((len(name),)) + name + _LENGTH.pack(len(value)) + value
