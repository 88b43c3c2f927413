"""ZMTP 3.0, the protocol under ZeroMQ's sockets, mechanism NULL: one end of a connection, without I/O.

With it a DEALER or ROUTER can live on a process's own loop. ZeroMQ's library does its I/O in a thread of its own, which
costs two wake-ups more for each message (docs/decisions/zmtp.md); both understand each other.

Source: rfc.zeromq.org/spec/23.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from prouter.errors import ProtocolError
from prouter.fabric.bounds import MAX_MESSAGE, MAX_PART, PART_OVERHEAD

__all__ = ["BULKY", "MAX_MESSAGE", "MAX_PART", "Zmtp", "encode_message", "opening"]

BULKY = 64 * 1024
"""Bytes from which a part is received into memory of its own and handed on as a view; copying less costs less."""
_PORTION = 1024
"""Frames taken out of what has arrived at once: small ones take more memory so, and others wait meanwhile."""
_STRANGERS_PORTION = 64
_JOINED = 8 * 1024
"""Bytes below which a part is copied to those around it when it is sent."""

_MORE, _LONG, _COMMAND = 1, 2, 4
_LENGTH = struct.Struct(">I")
_LONG_HEAD = struct.Struct(">BQ")
_FRAMES = (0, _MORE, _LONG, _MORE | _LONG, _COMMAND)
"""Flags there may be once both ends have introduced themselves; commands are short then."""
_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_MECHANISM = slice(12, 32)
_SIGNATURE_END, _VERSION = 9, 10
_INTRODUCTION = 1024
"""Bytes of an introduction at most; a routing id has up to 255 of them."""
_SHORT = 255
"""Bytes of a frame whose length takes one byte, at most."""
_SHORT_HEADS = tuple(tuple(bytes((flags, length)) for length in range(_SHORT + 1)) for flags in (0, _MORE))


def opening(kind: bytes, identity: bytes = b"") -> bytes:
    """What either side sends first: its greeting, and READY with the socket's type and routing id."""
    body = b"\x05READY" + _property(b"Socket-Type", kind) + _property(b"Identity", identity)
    return _GREETING + _head(_COMMAND, len(body)) + body


def encode_message(parts: Sequence[bytes]) -> list[bytes]:
    """The bytes of one message, as buffers to be sent one after the other; large parts are not copied.

    Raises:
        ProtocolError: the other end would not take it: a part or the whole is too large.
    """
    buffers: list[bytes] = []
    joined: list[bytes] = []
    left = len(parts)
    size = left * PART_OVERHEAD
    for part in parts:
        left -= 1
        length = len(part)
        size += length
        more = left > 0
        joined.append(_SHORT_HEADS[more][length] if length <= _SHORT else _LONG_HEAD.pack(_LONG | more, length))
        if length < _JOINED:
            joined.append(part)
        else:
            if length > MAX_PART:
                raise ProtocolError(f"a part of {length} bytes is larger than {MAX_PART}")
            buffers += (b"".join(joined), part)
            joined.clear()
    if size > MAX_MESSAGE:
        raise ProtocolError(f"a message of {size} bytes is larger than {MAX_MESSAGE}")
    if joined:
        buffers.append(b"".join(joined))
    return buffers


class Zmtp:
    """What arrives on a connection.

    Attributes:
        ready: whether the other end has introduced itself; nothing but `opening` is to be sent before.
        identity: the routing id it asks for.
        room: where the next bytes belong, while a large part is on its way; then tell `filled` how many came. Else
            None: any bytes may be given to `receive`.
        more: whether there is more to tell of what has arrived already: `receive` nothing to hear it.

    Args:
        peers: types of socket that may be at the other end.
        limit: for a stranger: size of a message that is taken before `trust`, bytes.
    """

    __slots__ = (
        "_limit",
        "_parts",
        "_peers",
        "_portion",
        "_rest",
        "_size",
        "_whole",
        "identity",
        "more",
        "ready",
        "room",
    )

    def __init__(self, *peers: bytes, limit: int | None = None) -> None:
        self._limit = MAX_MESSAGE if limit is None else limit
        self._portion = _PORTION if limit is None else _STRANGERS_PORTION
        self.more = False
        self.ready = False
        self.identity = b""
        self.room: memoryview | None = None
        self._peers = peers
        self._rest = b""
        self._parts: list[bytes] = []
        self._size = 0
        """Of the message that is on its way, so far."""
        self._whole: memoryview | None = None

    @property
    def unfinished(self) -> int:
        """Bytes of the message that is on its way, the part that has begun counted whole."""
        return self._size + len(self._rest)

    def trust(self) -> None:
        """The other end is known: it may send large messages, and many."""
        self._limit = MAX_MESSAGE
        self._portion = _PORTION

    def receive(self, data: bytes) -> list[list[bytes]]:
        """Messages that are complete with `data`, not too many at once.

        Each is its parts: bytes or, from `BULKY` on, memoryviews.

        Raises:
            ProtocolError: this is not ZMTP 3, or beyond the limits; the connection is of no use any more.
        """
        if self._rest:
            data = self._rest + data
        return self._messages(data, 0 if self.ready else self._introduced(data))

    def filled(self, count: int) -> list[list[bytes]]:
        """The message that is complete with the `count` bytes put into `room`, if it is."""
        room = self.room
        assert room is not None
        if count < len(room):
            self.room = room[count:]
            return []
        self.room = None
        whole, self._whole = self._whole, None
        assert whole is not None
        more, part = whole[0] & _MORE, whole[1:]
        self._parts.append(part)  # type: ignore[arg-type]
        return [] if more else [self._complete()]

    def _complete(self) -> list[bytes]:
        parts, self._parts = self._parts, []
        self._size = 0
        return parts

    def _messages(self, data: bytes, position: int) -> list[list[bytes]]:
        messages: list[list[bytes]] = []
        if not self.ready:
            self._rest = data
            return messages
        parts, size = self._parts, len(data)
        left = self._portion
        self.more = False
        while size - position >= 2:
            if not left:
                self.more = True
                break
            left -= 1
            flags = data[position]
            if flags & _LONG:
                start = position + _LONG_HEAD.size
                if size < start:
                    break
                length = _LONG_HEAD.unpack_from(data, position)[1]
            else:
                start = position + 2
                length = data[position + 1]
            if length > MAX_PART or flags not in _FRAMES or self._size + length > self._limit:
                self.more = True
                if messages:
                    break  # What came before is told first.
                self._rest = data[position:]
                raise ProtocolError(f"a part of {length} bytes, flags {flags}, is beyond what is taken")
            end = start + length
            if end > size:
                if length >= BULKY and self._limit == MAX_MESSAGE:
                    self._make_room(flags, length, data, start)
                    position = size
                break
            position = end
            if flags & _COMMAND:
                continue  # ZMTP 3.1's heartbeats; sessions have their own.
            self._size += length + PART_OVERHEAD
            part = data[start:end]
            parts.append(memoryview(part) if length >= BULKY else part)  # type: ignore[arg-type]
            if not flags & _MORE:
                messages.append(self._complete())
                parts = self._parts
        self._rest = data[position:]
        return messages

    def _make_room(self, flags: int, length: int, data: bytes, start: int) -> None:
        """Have the rest of a large part received where it stays; its flags are kept in front of it."""
        self._size += length + PART_OVERHEAD
        self._whole = whole = memoryview(bytearray(1 + length))
        whole[0] = flags
        have = len(data) - start
        whole[1 : 1 + have] = data[start:]
        self.room = whole[1 + have :]

    def _introduced(self, data: bytes) -> int:
        """Where messages begin, once the other end has said who it is.

        Raises:
            ProtocolError: it is not who it should be.
        """
        if not _GREETING.startswith(data[:1]) or (
            len(data) > _VERSION and (data[_SIGNATURE_END] != _GREETING[_SIGNATURE_END] or data[_VERSION] < 3)
        ):
            raise ProtocolError(f"the other end does not speak ZMTP 3, it begins with {bytes(data[:24])!r}")
        at = len(_GREETING)
        if len(data) < at + 2:
            return 0
        if data[_MECHANISM] != _GREETING[_MECHANISM]:
            raise ProtocolError("the other end wants another security mechanism")
        start, length = at + 2, data[at + 1]
        if data[at] == _COMMAND | _LONG:
            start = at + _LONG_HEAD.size
            if len(data) < start:
                return 0
            length = _LONG_HEAD.unpack_from(data, at)[1]
        if data[at] & ~_LONG != _COMMAND or length > _INTRODUCTION:
            raise ProtocolError("the other end does not introduce itself")
        if len(data) < start + length:
            return 0
        self._read_introduction(data[start : start + length])
        return start + length

    def _read_introduction(self, body: bytes) -> None:
        if body[:6] != b"\x05READY":
            raise ProtocolError(f"refused by the other end: {body!r:.100}")
        properties: dict[bytes, bytes] = {}
        at = 6
        while at < len(body):
            name_end = at + 1 + body[at]
            start = name_end + _LENGTH.size
            if start > len(body):
                raise ProtocolError("malformed introduction")
            end = start + _LENGTH.unpack_from(body, name_end)[0]
            if end > len(body):
                raise ProtocolError("malformed introduction")
            properties[body[at + 1 : name_end].lower()] = body[start:end]
            at = end
        if properties.get(b"socket-type") not in self._peers:
            raise ProtocolError(f"the other end is no {b' or '.join(self._peers).decode()}")
        self.identity = properties.get(b"identity", b"")
        self.ready = True


def _head(flags: int, length: int) -> bytes:
    return bytes((flags, length)) if length <= _SHORT else _LONG_HEAD.pack(flags | _LONG, length)


def _property(name: bytes, value: bytes) -> bytes:
    return bytes((len(name),)) + name + _LENGTH.pack(len(value)) + value
