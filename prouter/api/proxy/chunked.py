"""The chunked transfer coding (RFC 9112 section 7.1): an incremental decoder that knows where the body ends.

Strict: sizes are plain hexadecimal, lines end with CRLF. Extensions are ignored; trailers are dropped, as RFC 9110
section 6.5.1 allows. llhttp could decode too, but does not tell at which byte a message ended, which pipelining needs.
"""

from __future__ import annotations

import re

__all__ = ["LAST_CHUNK", "ChunkDecoder", "ChunkError", "encode_chunk"]

LAST_CHUNK = b"0\r\n\r\n"
_MAX_LINE = 4096
_MAX_TRAILERS = 65536
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n\x00]*)?\Z")


class ChunkError(ValueError):
    """The body is not properly chunked."""


def encode_chunk(data: bytes) -> bytes:
    """`data` (not empty) as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class ChunkDecoder:
    """Feed raw bytes, get the body's bytes.

    Attributes:
        complete: whether the last chunk and the trailers have been seen.
        rest: bytes after the end, once `complete`.
    """

    __slots__ = ("_buffer", "_remaining", "_trailer_bytes", "_trailers", "complete", "rest")

    def __init__(self) -> None:
        self.complete = False
        self.rest = b""
        self._buffer = b""
        self._remaining = 0
        """Bytes of the current chunk still to come, its CRLF included; 0 when a size line is next."""
        self._trailers = False
        self._trailer_bytes = 0

    def feed(self, data: bytes) -> bytes:
        """The body bytes that `data` brings.

        Raises:
            ChunkError: it is malformed.
        """
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        found: list[bytes] = []
        position = 0
        size = len(data)
        while position < size:
            if self._remaining:
                position = self._take_chunk(data, position, found)
                continue
            end = data.find(b"\n", position)
            if end < 0:
                if size - position > _MAX_LINE:
                    raise ChunkError("a line of the chunked body is too long")
                break
            if end == position or data[end - 1] != 0x0D:
                raise ChunkError("a line of the chunked body does not end with CRLF")
            line = data[position : end - 1]
            position = end + 1
            if self._line(line):
                self.complete = True
                self.rest = data[position:]
                return b"".join(found)
        self._buffer = data[position:]
        return found[0] if len(found) == 1 else b"".join(found)

    def _take_chunk(self, data: bytes, position: int, found: list[bytes]) -> int:
        """Consume bytes of the current chunk and its CRLF; the new position."""
        body = self._remaining - 2
        if body > 0:
            piece = data[position : position + body]
            found.append(piece)
            self._remaining -= len(piece)
            return position + len(piece)
        expected = b"\r\n"[2 - self._remaining]
        if data[position] != expected:
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
