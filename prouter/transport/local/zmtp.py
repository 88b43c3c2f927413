"""One end of a ZMTP 3.0 connection with the mechanism NULL, without I/O.

ZMTP is the protocol that ZeroMQ's sockets speak. With this codec a DEALER or ROUTER lives on the process's own event
loop. ZeroMQ's library does its I/O in a thread of its own, which costs two more wake-ups for each message. Either can
be the other end.

Source: rfc.zeromq.org/spec/23.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from prouter.errors import ProtocolError
from prouter.fabric.bounds import MAX_MESSAGE, MAX_PART, PART_OVERHEAD

__all__ = ["BULKY", "MAX_MESSAGE", "MAX_PART", "Zmtp", "encode_message", "opening"]

BULKY = 64 * 1024
"""Bytes from which a part is received into memory of its own and passed on as a view, to save a copy."""
_PORTION = 1024
"""Frames that one `receive` decodes, at most. As objects, small frames take many times their bytes, and other peers
wait meanwhile."""
_UNTRUSTED_PORTION = 64
"""The same before `trust`."""
_JOINED = 8 * 1024
"""Bytes below which a part is copied into a buffer with its neighbours; one more buffer would cost more."""

_MORE, _LONG, _COMMAND = 1, 2, 4
_LENGTH = struct.Struct(">I")
_LONG_HEAD = struct.Struct(">BQ")
_FRAMES = (0, _MORE, _LONG, _MORE | _LONG, _COMMAND)
"""Flags that a frame may have after the handshake, when commands are short."""
_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_MECHANISM = slice(12, 32)
_SIGNATURE_END, _VERSION = 9, 10
_MAX_READY = 1024
"""Bytes of the READY command, at most; a routing id has up to 255 of them."""
_SHORT = 255
"""Bytes of a frame whose length field has one byte, at most."""
_SHORT_HEADS = tuple(tuple(bytes((flags, length)) for length in range(_SHORT + 1)) for flags in (0, _MORE))


def opening(kind: bytes, identity: bytes = b"") -> bytes:
    """Return what either side sends first: the greeting, and READY with the socket's type and routing id."""
    body = b"\x05READY" + _property(b"Socket-Type", kind) + _property(b"Identity", identity)
    return _GREETING + _head(_COMMAND, len(body)) + body


def encode_message(parts: Sequence[bytes]) -> list[bytes]:
    """Encode one message as buffers to send one after the other; large parts are not copied.

    Raises:
        ProtocolError: a part or the whole is larger than the other end accepts.
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
    """Decodes what arrives on one connection.

    Args:
        peers: types of socket that may be at the other end.
        limit: bytes of a message that are accepted before `trust`; None for an end that is trusted from the beginning.

    Attributes:
        ready: whether the handshake is over; nothing but `opening` may be sent before.
        identity: the routing id that the other end asks for.
        room: while a large part is arriving, the memory that its next bytes belong into; tell `filled` how many were
            written there. Otherwise None, and bytes go to `receive`.
        more: whether bytes that arrived hold further messages; `receive(b"")` returns them.
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
        self._portion = _PORTION if limit is None else _UNTRUSTED_PORTION
        self.more = False
        self.ready = False
        self.identity = b""
        self.room: memoryview | None = None
        self._peers = peers
        self._rest = b""
        self._parts: list[bytes] = []
        self._size = 0
        """Bytes of the message that is arriving, so far."""
        self._whole: memoryview | None = None
        """The large part that is arriving, behind one byte with its flags."""

    @property
    def unfinished(self) -> int:
        """Bytes of memory that the arriving message takes; a large part counts whole once it has begun."""
        return self._size + len(self._rest)

    def trust(self) -> None:
        """Accept large messages from now on, and many at once: the other end has authenticated."""
        self._limit = MAX_MESSAGE
        self._portion = _PORTION

    def receive(self, data: bytes) -> list[list[bytes]]:
        """Decode `data`; return the messages that are complete with it, though not too many at once (`more`).

        Each message is a list of its parts: bytes or, from `BULKY` bytes on, memoryviews.

        Raises:
            ProtocolError: this is not ZMTP 3, or beyond the limits. The connection cannot be used any longer.
        """
        if self._rest:
            data = self._rest + data
        return self._messages(data, 0 if self.ready else self._shake_hands(data))

    def filled(self, count: int) -> list[list[bytes]]:
        """Note that `count` bytes were written into `room`; return the message if it is complete with them."""
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
                    break  # The messages before it are returned first; the next call raises.
                self._rest = data[position:]
                raise ProtocolError(f"a part of {length} bytes, flags {flags}, is beyond the limits")
            end = start + length
            if end > size:
                # Only for a trusted end: memory is taken here for bytes that are merely announced.
                if length >= BULKY and self._limit == MAX_MESSAGE:
                    self._make_room(flags, length, data, start)
                    position = size
                break
            position = end
            if flags & _COMMAND:
                continue  # Heartbeats of ZMTP 3.1, which are not answered: sessions have their own.
            self._size += length + PART_OVERHEAD
            part = data[start:end]
            parts.append(memoryview(part) if length >= BULKY else part)  # type: ignore[arg-type]
            if not flags & _MORE:
                messages.append(self._complete())
                parts = self._parts
        self._rest = data[position:]
        return messages

    def _make_room(self, flags: int, length: int, data: bytes, start: int) -> None:
        """Let the rest of a large part be received into the memory that its reader gets."""
        self._size += length + PART_OVERHEAD
        self._whole = whole = memoryview(bytearray(1 + length))
        whole[0] = flags
        have = len(data) - start
        whole[1 : 1 + have] = data[start:]
        self.room = whole[1 + have :]

    def _shake_hands(self, data: bytes) -> int:
        """Read greeting and READY; return where messages begin, 0 while the handshake is incomplete.

        Raises:
            ProtocolError: the other end is none that this one talks to.
        """
        # As early as possible: what connects by mistake, a browser for example, hears it by a closed connection.
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
        if data[at] & ~_LONG != _COMMAND or length > _MAX_READY:
            raise ProtocolError("the other end does not begin with READY")
        if len(data) < start + length:
            return 0
        self._read_ready(data[start : start + length])
        return start + length

    def _read_ready(self, body: bytes) -> None:
        """Read the READY command: its name, then properties, each a name, a length and a value."""
        if body[:6] != b"\x05READY":
            raise ProtocolError(f"refused by the other end: {body!r:.100}")
        properties: dict[bytes, bytes] = {}
        at = 6
        while at < len(body):
            name_end = at + 1 + body[at]
            start = name_end + _LENGTH.size
            if start > len(body):
                raise ProtocolError("malformed READY")
            end = start + _LENGTH.unpack_from(body, name_end)[0]
            if end > len(body):
                raise ProtocolError("malformed READY")
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
