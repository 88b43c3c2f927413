"""Blocking reads and writes on a stream, for greenlets.

Every kind of stream but ``http`` begins with *prefaces*: maps, each a little-endian u32 length and as many bytes of
msgpack. Some kinds have prefaces after their bytes, too.
"""

from __future__ import annotations

import logging
import struct
from collections import deque
from typing import Any

from gevent.event import Event

from prouter.errors import ProtocolError, PRouterError, from_wire
from prouter.fabric.frames import pack_body, unpack_body
from prouter.fabric.stream import Stream

__all__ = ["CHUNK", "MAX_PREFACE", "StreamIO", "StreamReset", "pack_preface"]

CHUNK = 256 * 1024
"""Bytes that a read returns at most unless told otherwise, and a good size to write."""
MAX_PREFACE = 1024 * 1024
"""Bytes of a preface, at most."""

_LENGTH = struct.Struct("<I")


def pack_preface(body: dict[str, Any]) -> bytes:
    """Return a preface: ``{"ok": True, …}`` or ``{"error": PRouterError.to_wire()}``."""
    packed = pack_body(body)
    return _LENGTH.pack(len(packed)) + packed


class StreamReset(PRouterError):
    """The stream ended early; `code` and `detail` are those of the reset, whichever side sent it."""

    code = "stream_reset"
    status = 503
    level = logging.WARNING


class StreamIO:
    """A stream as a blocking file-like object, which makes itself the stream's handler.

    At most one greenlet reads and one writes. The stream's window bounds what is buffered, because only reading opens
    the window again. What arrived before the other end's reset can still be read.

    Attributes:
        stream: the stream.
        takes_views: set it to read large pieces as memoryviews instead of bytes.
    """

    __slots__ = ("_chunks", "_finished", "_readable", "_reset", "_writable", "stream", "takes_views")

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.takes_views = False
        self._chunks: deque[bytes] = deque()
        self._finished = False
        self._reset: tuple[str, str] | None = None
        self._readable: Event | None = None
        self._writable: Event | None = None
        stream.handler = self

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def buffered(self) -> int:
        """Bytes that `read` returns without waiting."""
        return sum(map(len, self._chunks))

    @property
    def waits(self) -> bool:
        """Whether `read` would wait for the other end."""
        return not self._chunks and not self._finished

    @property
    def finished(self) -> bool:
        """Whether the other end writes nothing more; buffered bytes may be left."""
        return self._finished

    def read(self, size: int = CHUNK) -> bytes:
        """Return up to `size` bytes as soon as there are any; b"" once the other end has finished.

        Raises:
            StreamReset: the stream ended early.
        """
        if not self._wait_readable():
            return b""
        chunks = self._chunks
        data = chunks.popleft()
        if len(data) > size:
            chunks.appendleft(data[size:])
            data = data[:size]
        self.stream.consume(len(data))
        return data

    def read_buffered(self) -> list[bytes]:
        """Return all buffered pieces as soon as there are any; none once the other end has finished.

        They have one window of bytes at most, and the next window may arrive while they are used.

        Raises:
            StreamReset: the stream ended early.
        """
        self._wait_readable()
        pieces = list(self._chunks)
        self._chunks.clear()
        self.stream.consume(sum(map(len, pieces)))
        return pieces

    def read_exactly(self, size: int) -> bytes:
        """Return exactly `size` bytes.

        Raises:
            StreamReset: the stream ended early.
            ProtocolError: the other end finished before it had written as many.
        """
        parts = []
        missing = size
        while missing:
            data = self.read(missing)
            if not data:
                raise ProtocolError(f"the stream ended {missing} bytes early", code="truncated")
            parts.append(data)
            missing -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_preface(self) -> dict[str, Any]:
        """Return the next preface, if it says ``ok``.

        Raises:
            PRouterError: the error that the preface carries.
            StreamReset: the stream ended early.
            ProtocolError: the preface is malformed, too long or cut.
        """
        (length,) = _LENGTH.unpack(self.read_exactly(_LENGTH.size))
        if length > MAX_PREFACE:
            raise ProtocolError(f"a preface of {length} bytes is too long")
        body = unpack_body(self.read_exactly(length))
        error = body.get("error")
        if isinstance(error, dict):
            raise from_wire(error)
        if body.get("ok") is not True:
            raise ProtocolError("a preface needs ok or error")
        return body

    def refuse_reset(self) -> None:
        """Check that the stream lives, between reads and writes that are far apart.

        Raises:
            StreamReset: the stream ended early.
        """
        if self._reset is not None:
            raise self._error()

    def give_up(self) -> tuple[list[bytes], bool]:
        """Return what is buffered, which is not consumed, and whether the other end has finished.

        The stream is to get another handler before the event loop goes on.

        Raises:
            StreamReset: the stream ended early.
        """
        if self._reset is not None:
            raise self._error()
        pieces = list(self._chunks)
        self._chunks.clear()
        return pieces, self._finished

    # -- writing ------------------------------------------------------------------------------------------------------

    def write_all(self, data: bytes) -> None:
        """Write all of `data`; wait while the window is full.

        Raises:
            StreamReset: the stream ended early.
        """
        size = len(data)
        position = 0
        while position < size:
            if self.stream.reset_code is not None:
                raise self._error()
            # A whole window at once would let the other end wait for the next while it uses this one.
            most = max(CHUNK, self.stream.piece)
            piece = data if size <= most and not position else data[position : position + most]
            taken = self.stream.write(piece)
            position += taken
            if taken < len(piece):
                self._wait_writable()

    def write_preface(self, body: dict[str, Any]) -> None:
        """Write one preface: ``{"ok": True, …}`` or ``{"error": PRouterError.to_wire()}``.

        Raises:
            StreamReset: the stream ended early.
        """
        self.write_all(pack_preface(body))

    def close(self) -> None:
        """End this side's direction; what was written still arrives. Idempotent."""
        self.stream.close()

    def wait_closed(self) -> None:
        """Wait until the other end has consumed everything written here, and everything it wrote is read.

        Both ends must close their direction for that; an end that only reads does so right after opening.

        Raises:
            StreamReset: the stream ended early.
        """
        while not self.stream.closed:
            self._wait_writable()
        if self._reset is not None:
            raise self._error()

    def reset(self, code: str, text: str = "") -> None:
        """End both directions now; this side's reader and writer get `StreamReset`, too. Idempotent."""
        self.stream.reset(code, text)
        self._chunks.clear()
        self.on_reset(code, text)

    # -- what the transport calls (`StreamHandler`) ---------------------------------------------------------------

    def on_data(self, data: bytes) -> None:
        """Buffer bytes that arrived."""
        if self._reset is None:
            self._chunks.append(data)
            if self._readable is not None:
                self._readable.set()

    def on_finish(self) -> None:
        """Note that the other end writes nothing more."""
        self._finished = True
        if self._readable is not None:
            self._readable.set()

    def on_writable(self) -> None:
        """Wake the writer up."""
        if self._writable is not None:
            self._writable.set()

    def on_reset(self, code: str, text: str) -> None:
        """Wake reader and writer up with `StreamReset`."""
        # A stream that closed cleanly stays so, whatever is called late.
        if self._reset is not None or (self.stream.closed and self.stream.reset_code is None):
            return
        self._reset = (code, text)
        if self._readable is not None:
            self._readable.set()
        if self._writable is not None:
            self._writable.set()

    def on_closed(self) -> None:
        """Wake `wait_closed` up."""
        self.on_writable()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _wait_readable(self) -> bool:
        """Wait for bytes; return False if the other end has finished instead."""
        while not self._chunks:
            if self._finished:
                return False
            if self._reset is not None:
                raise self._error()
            self._readable = Event()
            try:
                self._readable.wait()
            finally:
                self._readable = None
        return True

    def _wait_writable(self) -> None:
        self._writable = Event()
        try:
            if self._reset is None:
                self._writable.wait()
        finally:
            self._writable = None

    def _error(self) -> StreamReset:
        code, text = self._reset or (self.stream.reset_code or "stream_reset", "")
        return StreamReset(text or f"the stream was reset: {code}", code=code)
