"""Request and response bodies: where they end, and how they are framed on the other side."""

from __future__ import annotations

from prouter.web.proxy.messages.chunked import LAST_CHUNK, ChunkDecoder, encode_chunk
from prouter.web.proxy.messages.heads import BodyKind, RequestHead, ResponseHead

__all__ = ["RequestBody", "ResponseBody"]

_LITTLE = 8192
"""Bytes that take little time to decode however small their chunks are."""


class RequestBody:
    """A request body on its way to the job.

    Attributes:
        over: whether the body is complete.
        fragmented: whether the last bytes were mostly framing: chunks of a few bytes, which take long to decode.
    """

    __slots__ = ("_decoder", "_left", "fragmented", "over")

    def __init__(self, head: RequestHead) -> None:
        self._left = head.length
        self._decoder = ChunkDecoder() if head.body == BodyKind.CHUNKED else None
        self.over = head.body == BodyKind.NONE or (self._decoder is None and not head.length)
        self.fragmented = False

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """Return what the job gets of `data`, and what belongs to the next request.

        Raises:
            ChunkError: the client's chunks are broken.
        """
        if self._decoder is None:
            body, rest = data[: self._left], data[self._left :]
            self._left -= len(body)
            self.over = self._left == 0
            return body, rest
        framed = encode_chunk(self._decoder.feed(data))
        self.fragmented = 2 * len(framed) < len(data)
        if not self._decoder.complete:
            return framed, b""
        self.over = True
        return framed + LAST_CHUNK, self._decoder.rest


class ResponseBody:
    """A response body on its way to the client.

    Attributes:
        over: whether the body is complete.
        clean: whether nothing arrived after its end, so that the connection to the job can serve another request.
        chunked: whether the client gets chunks.
        fragmented: whether many bytes were mostly framing: chunks of a few bytes, which take long to decode.
        until_close: whether only the end of the connection tells the client where the body ends (HTTP/1.0).
    """

    __slots__ = ("_decoder", "_left", "chunked", "clean", "fragmented", "over", "until_close")

    def __init__(self, request: RequestHead, head: ResponseHead) -> None:
        self.over = False
        self.clean = True
        self.chunked = False
        self.fragmented = False
        self.until_close = False
        self._left = -1
        """Bytes to come, -1 if that is unknown."""
        self._decoder: ChunkDecoder | None = None
        if request.method == b"HEAD" or head.status in (204, 304):
            self._left = 0
        elif head.body == BodyKind.LENGTH:
            self._left = head.length
        else:
            if head.body == BodyKind.CHUNKED:
                self._decoder = ChunkDecoder(bare_lf=True)
            self.chunked = request.version == "1.1"
            self.until_close = not self.chunked

    def feed(self, data: bytes) -> bytes:
        """Return what the client gets for `data`.

        Raises:
            ChunkError: the job's chunks are broken.
        """
        if self._left >= 0:
            if len(data) > self._left:
                self.clean = False
                data = data[: self._left]
            self._left -= len(data)
            self.over = self._left == 0
            return data
        if self._decoder is None:
            return encode_chunk(data) if self.chunked else data
        pieces = self._decoder.feed(data)
        self.over = self._decoder.complete
        self.clean = not self._decoder.rest and not self._decoder.loose
        if len(data) > _LITTLE and 2 * sum(map(len, pieces)) < len(data):
            self.fragmented = True
        if not self.chunked:
            return b"".join(pieces)
        return encode_chunk(pieces) + LAST_CHUNK if self.over else encode_chunk(pieces)

    def finish(self) -> bytes | None:
        """Return what the client gets at the end of the stream, None if the body is not complete."""
        if self._left >= 0 or self._decoder is not None:
            return None
        self.over = True
        return LAST_CHUNK if self.chunked else b""
