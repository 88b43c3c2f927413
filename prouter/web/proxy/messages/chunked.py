"""The chunked transfer coding (RFC 9112 section 7.1): an incremental decoder that knows where the body ends.

The decoder is strict: sizes are plain hexadecimal, and lines end with CRLF, or with a bare LF where it may accept that,
as browsers do in responses. It ignores extensions and drops trailers, as RFC 9110 section 6.5.1 allows. llhttp could
decode, too, but does not say at which byte a message ends, and pipelining needs that.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["LAST_CHUNK", "ChunkDecoder", "ChunkError", "encode_chunk"]

LAST_CHUNK = b"0\r\n\r\n"
_MAX_LINE = 4096
_USUAL_LINE = 32
"""Bytes within which most size lines end."""
_MAX_TRAILERS = 65536
_SMALL = 1024
"""Chunks of fewer bytes are copied: a view of each would cost more."""
_BLOCK = 16384
"""Bytes that are searched for small chunks at once."""
_LF = 0x0A
Buffer = bytes | memoryview
_SMALL_SIZES = {form % size: size for form in (b"%x", b"%X") for size in range(1, _SMALL)}
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n\x00]*)?\Z")


class ChunkError(ValueError):
    """The body is not properly chunked."""


def encode_chunk(data: Buffer | Sequence[Buffer]) -> bytes:
    """Return `data`, or pieces of it, as one chunk; nothing for no bytes, because that would be the last chunk."""
    pieces = [data] if isinstance(data, (bytes, memoryview)) else data
    size = sum(map(len, pieces))
    return b"".join((b"%x\r\n" % size, *pieces, b"\r\n")) if size else b""


class ChunkDecoder:
    """An incremental decoder.

    Args:
        bare_lf: whether a line may end with LF alone. False for requests: two parsers that disagree on it see different
            requests (request smuggling).

    Attributes:
        complete: whether the last chunk and the trailers were read.
        loose: whether a line ended with LF alone.
        rest: bytes after the end, once `complete`.
    """

    __slots__ = ("_bare_lf", "_buffer", "_remaining", "_trailer_bytes", "_trailers", "complete", "loose", "rest")

    def __init__(self, *, bare_lf: bool = False) -> None:
        self.complete = False
        self.loose = False
        self.rest = b""
        self._bare_lf = bare_lf
        self._buffer = b""
        self._remaining = 0
        """Bytes of the current chunk still to come, with its CRLF; 0 if a size line is next."""
        self._trailers = False
        self._trailer_bytes = 0

    def feed(self, data: Buffer) -> list[Buffer]:
        """Return the body bytes in `data`, large chunks as views of it, so that they are not copied.

        Raises:
            ChunkError: the framing is broken.
        """
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        view = memoryview(data)
        found: list[Buffer] = []
        position = tried = 0
        size = len(view)
        while position < size:
            if self._remaining:
                position = self._take_chunk(view, position, found)
                continue
            if found and len(found[-1]) < _SMALL and position >= tried and not self._trailers:
                tried = position + _BLOCK
                position += _take_small_chunks(bytes(view[position:tried]), found)
                continue
            line = _line_at(view, position)
            if line is None:
                self._buffer = bytes(view[position:])
                break
            position += len(line)
            if line[-2:] != b"\r\n":
                if not self._bare_lf:
                    raise ChunkError("a line of the chunked body does not end with CRLF")
                self.loose = True
            if self._line(line[:-1].removesuffix(b"\r")):
                self.complete = True
                self.rest = bytes(view[position:])
                break
        return found

    def _take_chunk(self, view: memoryview, position: int, found: list[Buffer]) -> int:
        """Consume bytes of the current chunk and its CRLF, and return the new position."""
        body = self._remaining - 2
        if body > 0:
            piece = view[position : position + body]
            found.append(piece if body >= _SMALL else bytes(piece))
            self._remaining -= len(piece)
            return position + len(piece)
        if self._bare_lf and view[position] == _LF and self._remaining == 2:
            self.loose = True
            self._remaining = 0
            return position + 1
        expected = b"\r\n"[2 - self._remaining]
        if view[position] != expected:
            raise ChunkError("a chunk is longer than its size says")
        self._remaining -= 1
        return position + 1

    def _line(self, line: bytes) -> bool:
        """Process a size line or a trailer line, and return whether the body is over."""
        if self._trailers:
            self._trailer_bytes += len(line)
            if self._trailer_bytes > _MAX_TRAILERS:
                raise ChunkError("the trailers are too long")
            return not line
        match = _SIZE_LINE.match(line)
        if match is None:
            raise ChunkError("a chunk size is not a hexadecimal number")
        length = int(match[1], 16)
        if length:
            self._remaining = length + 2
        else:
            self._trailers = True
        return False


def _take_small_chunks(block: bytes, found: list[Buffer]) -> int:
    """Consume whole small chunks without extensions at the beginning of a block, and return their size in bytes."""
    position = 0
    while True:
        end = block.find(b"\r\n", position, position + _USUAL_LINE)
        size = _SMALL_SIZES.get(block[position:end]) if end > 0 else None
        if size is None:
            return position
        start = end + 2
        end = start + size
        if block[end : end + 2] != b"\r\n":
            return position
        found.append(block[start:end])
        position = end + 2


def _line_at(view: memoryview, position: int) -> bytes | None:
    """Return the line that begins at `position`, with its line break; None if that has not arrived.

    Raises:
        ChunkError: the line is too long.
    """
    for most in (_USUAL_LINE, _MAX_LINE + 1):
        some = bytes(view[position : position + most])
        end = some.find(b"\n") + 1
        if end:
            return some[:end]
        if len(some) < most:
            return None
    raise ChunkError("a line of the chunked body is too long")
