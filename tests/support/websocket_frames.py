"""WebSocket frames byte by byte (RFC 6455 section 5.2), valid or not, and a client that sends them."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from tests.support.raw_http import Raw

__all__ = ["BINARY", "CLOSE", "CONTINUATION", "PING", "PONG", "TEXT", "RawWebSocket", "close", "frame"]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
MASK = b"\x37\xfa\x21\x3d"
HANDSHAKE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    reserved: int = 0,
    masked: bool = True,
    length_bytes: int | None = None,
    claimed: int | None = None,
) -> bytes:
    """One frame.

    Args:
        reserved: RSV1 to RSV3 as a number, RSV1 being 4.
        length_bytes: 0, 2 or 8 for the form of the length, the shortest one unless given.
        claimed: the length it tells, that of the payload unless given.
    """
    size = len(payload) if claimed is None else claimed
    if length_bytes is None:
        length_bytes = 0 if size < 126 else 2 if size < 65536 else 8
    short = {0: size, 2: 126, 8: 127}[length_bytes]
    head = bytes(((fin << 7) | (reserved << 4) | opcode, (masked << 7) | short))
    if length_bytes:
        head += size.to_bytes(length_bytes, "big")
    if not masked:
        return head + payload
    repeated = (MASK * (len(payload) // 4 + 1))[: len(payload)]
    hidden = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
    return head + MASK + hidden.to_bytes(len(payload), "big")


def close(code: int | None = 1000, reason: bytes = b"") -> bytes:
    """Return a close frame."""
    return frame(CLOSE, b"" if code is None else code.to_bytes(2, "big") + reason)


class RawWebSocket(Raw):
    """A client that opened a WebSocket and goes on at the level of bytes.

    Attributes:
        answer: the lines of the handshake's answer but Date, sorted, as Connection and Upgrade are each hop's own.
    """

    def __init__(self, url: str, target: str, headers: str = "", timeout: float = 10.0) -> None:
        super().__init__(url, timeout)
        self.request("GET", target, HANDSHAKE + headers)
        lines = self.read_until(b"\r\n\r\n").split(b"\r\n")
        self.answer = sorted(line for line in lines if not line.lower().startswith(b"date:"))

    def __enter__(self) -> RawWebSocket:
        return self

    def send_pieces(self, pieces: Sequence[bytes]) -> None:
        """Send each piece as a segment of its own; that the server has closed the connection is no error."""
        try:
            for piece in pieces:
                self.sock.send(piece, socket.MSG_NOSIGNAL) if len(piece) < 4096 else self.sock.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            self.cut = True

    def read_frame(self) -> tuple[int, bytes]:
        """Read the server's next frame; return its first byte and payload."""
        first, size = self.read_exactly(2)
        if size >= 126:
            size = int.from_bytes(self.read_exactly(2 if size == 126 else 8), "big")
        return first, self.read_exactly(size)
