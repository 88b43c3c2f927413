"""One end of a ZMTP 3.0 connection, without I/O: frames, messages, and the handshake of the mechanism NULL.

ZMTP is the protocol that ZeroMQ's sockets speak. With this codec a DEALER or ROUTER runs on the process's own event
loop. ZeroMQ's library does its I/O in a thread of its own, which costs two more wake-ups for each message. The other
end may be either. curve.py beside this module adds the mechanism CURVE.

Source: rfc.zeromq.org/spec/23.
"""

from __future__ import annotations

from collections.abc import Sequence

from prouter.errors import ProtocolError
from prouter.fabric.bounds import MAX_MESSAGE, MAX_PART, PART_OVERHEAD
from prouter.transport.zmtp.handshakes import (
    COMMAND,
    GREETING_SIZE,
    LONG,
    LONG_HEAD,
    MECHANISM,
    MORE,
    SHORT,
    SIGNATURE_END,
    VERSION,
    greeting,
    next_command,
    opening,
    read_properties,
)

__all__ = ["BULKY", "MAX_MESSAGE", "MAX_PART", "Zmtp", "encode_message"]

BULKY = 64 * 1024
"""Bytes from which a part is received into memory of its own and passed on as a view, to save a copy."""
_PORTION = 1024
"""Frames that one `receive` decodes, at most. As objects, small frames take many times their bytes, and other peers
wait meanwhile."""
_UNTRUSTED_PORTION = 64
"""Frames that are accepted before `trust`, in all."""
_JOINED = 8 * 1024
"""Bytes below which a part is copied into a buffer with its neighbours; one more buffer would cost more."""

_FRAMES = (0, MORE, LONG, MORE | LONG, COMMAND)
"""Flags that a frame may have after the handshake, when commands are short."""
_MAX_READY = 1024
"""Bytes of the READY command, at most; a routing id has up to 255 of them."""
_SHORT_HEADS = tuple(tuple(bytes((flags, length)) for length in range(SHORT + 1)) for flags in (0, MORE))


_GREETING = greeting(b"NULL")


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
        joined.append(_SHORT_HEADS[more][length] if length <= SHORT else LONG_HEAD.pack(LONG | more, length))
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
        limit: bytes that are accepted before `trust`, in all; None for an end that is trusted from the beginning.

    Attributes:
        ready: whether the handshake is over; nothing but `opening` and `reply` may be sent before.
        reply: what the handshake has to send; the caller sends and then empties it, even if `receive` raises.
        peer_key: the public key that the other end has proved to own, in Z85; empty without encryption.
        identity: the routing id that the other end asks for.
        room: while a large part is arriving, the memory into which its next bytes belong; call `filled` with the number
            of bytes written there. Otherwise None, and bytes go to `receive`.
        more: whether bytes that arrived hold further messages; `receive(b"")` returns them.
    """

    reply: bytes
    peer_key = ""
    answers = False
    """Whether the handshake needs answers of this end, so that a peer which has left cannot have said anything yet."""
    _overhead = 0
    """Bytes of a frame's body beyond the part that it carries."""
    _flags: tuple[int, ...] = _FRAMES

    __slots__ = (
        "_limit",
        "_parts",
        "_peers",
        "_portion",
        "_rest",
        "_size",
        "_trusted",
        "_whole",
        "identity",
        "more",
        "ready",
        "reply",
        "room",
    )

    def __init__(self, *peers: bytes, limit: int | None = None) -> None:
        self._limit = MAX_MESSAGE if limit is None else limit
        self._trusted = limit is None
        self._portion = _PORTION if limit is None else _UNTRUSTED_PORTION
        self.more = False
        self.ready = False
        self.reply = b""
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
        self._trusted = True
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

    def opening(self, kind: bytes, identity: bytes = b"") -> bytes:
        """Return what this end sends first, being a socket of that type with that routing id."""
        return opening(kind, identity)

    def encode(self, parts: Sequence[bytes]) -> list[bytes]:
        """Encode one message once `ready`, as buffers to send one after the other.

        Raises:
            ProtocolError: a part or the whole is larger than the other end accepts.
        """
        return encode_message(parts)

    def _open(self, data: bytes, start: int, end: int) -> tuple[int, bytes | memoryview]:
        """Return the flags and the part that the body of a frame in `data` holds, if frames have an overhead.

        Raises:
            ProtocolError: the body is not what the other end sent.
        """
        raise NotImplementedError  # pragma: no cover - only where frames have an overhead

    def _open_room(self, body: memoryview) -> tuple[int, memoryview]:
        """Do as `_open` for a large frame's body; the part may stay in the body's memory.

        Raises:
            ProtocolError: as `_open`; the body cannot be opened later either.
        """
        raise NotImplementedError  # pragma: no cover - only where frames have an overhead

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
        flags, part = whole[0], whole[1:]
        if self._overhead:
            try:
                flags, part = self._open_room(part)
            except ProtocolError:
                # For the next call to raise again, if this one was not the first with something to tell.
                self._rest = LONG_HEAD.pack(flags | LONG, len(part)) + part
                self.more = True
                raise
        self._parts.append(part)  # type: ignore[arg-type]
        return [] if flags & MORE else [self._complete()]

    def _complete(self) -> list[bytes]:
        parts, self._parts = self._parts, []
        self._size = 0
        return parts

    def _messages(self, data: bytes, position: int) -> list[list[bytes]]:
        messages: list[list[bytes]] = []
        if not self.ready:
            self._rest = data[position:]
            return messages
        parts, size = self._parts, len(data)
        left = self._portion
        overhead, allowed = self._overhead, self._flags
        self.more = False
        while size - position >= 2:
            if not left:
                self.more = True
                if not self._portion:
                    raise ProtocolError("an unauthenticated connection sends more than an introduction")
                break
            left -= 1
            flags = data[position]
            if flags & LONG:
                start = position + LONG_HEAD.size
                if size < start:
                    break
                length = LONG_HEAD.unpack_from(data, position)[1]
            else:
                start = position + 2
                length = data[position + 1]
            inner = length - overhead
            if inner > MAX_PART or flags not in allowed or self._size + inner > self._limit:
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
            if not overhead:
                part: bytes | memoryview = data[start:end]
            else:
                try:
                    flags, part = self._open(data, start, end)
                except ProtocolError:
                    self.more = True
                    if messages:
                        break
                    self._rest = data[position:]
                    raise
            position = end
            if flags & COMMAND:
                continue  # Heartbeats of ZMTP 3.1, which are not answered: sessions have their own.
            self._size += inner + PART_OVERHEAD
            parts.append(memoryview(part) if inner >= BULKY else part)  # type: ignore[arg-type]
            if not flags & MORE:
                messages.append(self._complete())
                parts = self._parts
        self._rest = data[position:]
        if not self._trusted:
            # What it may send in all before it is authenticated, not each time.
            self._portion = left
            self._limit -= sum(len(part) + PART_OVERHEAD for parts in messages for part in parts)
        return messages

    def _make_room(self, flags: int, length: int, data: bytes, start: int) -> None:
        """Let the rest of a large part be received into the memory that its reader gets."""
        self._size += length - self._overhead + PART_OVERHEAD
        self._whole = whole = memoryview(bytearray(1 + length))
        whole[0] = flags
        have = len(data) - start
        whole[1 : 1 + have] = data[start:]
        self.room = whole[1 + have :]

    def _shake_hands(self, data: bytes) -> int:
        """Read greeting and READY; return where messages begin, 0 while the handshake is incomplete.

        Raises:
            ProtocolError: this end does not talk to such an end.
        """
        if not self._greeted(data, _GREETING):
            return 0
        found = next_command(data, GREETING_SIZE, _MAX_READY)
        if found is None:
            return 0
        body, end = found
        if body[:6] != b"\x05READY":
            raise ProtocolError(f"refused by the other end: {body!r:.100}")
        self._introduced(body, 6)
        return end

    def _greeted(self, data: bytes, own: bytes) -> bool:
        """Check the other end's greeting against this end's; return whether it has arrived whole.

        Raises:
            ProtocolError: it is another protocol's, or of another security mechanism.
        """
        # As early as possible, so that the connection of a client of another protocol, such as a browser, is closed.
        if not own.startswith(data[:1]) or (
            len(data) > VERSION and (data[SIGNATURE_END] != own[SIGNATURE_END] or data[VERSION] < 3)
        ):
            raise ProtocolError(f"the other end does not speak ZMTP 3, it begins with {bytes(data[:24])!r}")
        if len(data) < MECHANISM.stop:
            return False
        if data[MECHANISM] != own[MECHANISM]:
            raise ProtocolError("the other end wants another security mechanism")
        return len(data) >= GREETING_SIZE

    def _introduced(self, body: bytes, at: int) -> None:
        """Read the other end's properties, which begin at `at`; the handshake is over.

        Raises:
            ProtocolError: they are malformed, or those of a socket that this end does not talk to.
        """
        found = read_properties(body, at)
        if found.get(b"socket-type") not in self._peers:
            raise ProtocolError(f"the other end is no {b' or '.join(self._peers).decode()}")
        self.identity = found.get(b"identity", b"")
        self.ready = True
