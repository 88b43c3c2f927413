"""The chunked transfer coding (RFC 9112 section 7.1): an incremental decoder that knows where the body ends.

Strict: sizes are plain hexadecimal, lines end with CRLF, or with a bare LF where the decoder is told to accept it, as
browsers do in answers. Extensions are ignored; trailers are dropped, as RFC 9110
section 6.5.1 allows. llhttp could decode too, but does not tell at which byte a message ended, which pipelining needs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["LAST_CHUNK", "ChunkDecoder", "ChunkError", "encode_chunk"]

LAST_CHUNK = b"0\r\n\r\n"
_MAX_LINE = 4096
_USUAL_LINE = 32
"""Bytes in which most size lines end."""
_MAX_TRAILERS = 65536
_SMALL = 1024
"""Chunks of fewer bytes are small: a view of each would cost more than its bytes."""
_BLOCK = 16384
"""Bytes in which small chunks are looked for at once."""
_LF = 0x0A
Buffer = bytes | memoryview
_SMALL_SIZES = {form % size: size for form in (b"%x", b"%X") for size in range(1, _SMALL)}
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n\x00]*)?\Z")


class ChunkError(ValueError):
    """The body is not properly chunked."""


def encode_chunk(data: Buffer | Sequence[Buffer]) -> bytes:
    """`data`, or pieces of it, as one chunk; nothing when there are no bytes, for that would be the last chunk."""
    pieces = [data] if isinstance(data, (bytes, memoryview)) else data
    size = sum(map(len, pieces))
    return b"".join((b"%x\r\n" % size, *pieces, b"\r\n")) if size else b""


class ChunkDecoder:
    """Feed raw bytes, get the body's bytes.

    Args:
        bare_lf: whether a line may end with LF alone. Never for requests: two readers could disagree.

    Attributes:
        complete: whether the last chunk and the trailers have been seen.
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
        """Bytes of the current chunk still to come, its CRLF included; 0 when a size line is next."""
        self._trailers = False
        self._trailer_bytes = 0

    def feed(self, data: Buffer) -> list[Buffer]:
        """The body bytes that `data` brings, large chunks as views of it: they are not copied.

        Raises:
            ChunkError: it is malformed.
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
        """Consume bytes of the current chunk and its CRLF; the new position."""
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
        """Process a size line or a trailer line; whether the body is over."""
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
    """Consume whole small chunks without extensions at the beginning of a block, fast; how many bytes they were."""
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
    """The line that begins at `position`, its end included; None when that has not come yet.

    Raises:
        ChunkError: it is too long.
    """
    for most in (_USUAL_LINE, _MAX_LINE + 1):
        some = bytes(view[position : position + most])
        end = some.find(b"\n") + 1
        if end:
            return some[:end]
        if len(some) < most:
            return None
    raise ChunkError("a line of the chunked body is too long")
