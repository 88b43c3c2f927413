"""A job server with hardly any cost of its own, for benchmarks behind every proxy, and for tests as a well-behaved job.

HTTP/1.1 and WebSocket parsed by hand on asyncio (uvloop when it is installed). Run it as ``fast_server.py [PORT]``
(default: ``$PORT``, else any free port, printed as ``listening HOST:PORT``) or ``fast_server.py --unix PATH``.

=================================  =================================================================================
``GET /``                          100 bytes, Content-Length
``GET /bytes/N``, ``/chunked/N``   N bytes with Content-Length, or chunked
``POST /sink``                     reads the body (Content-Length or chunked), answers the number of its bytes
``POST /copy``                     the body repeated as it arrives, in the framing it came with
``GET /sse?interval_ms=&count=``   server-sent events; each ``data`` is CLOCK_MONOTONIC in nanoseconds
``GET /ws``                        WebSocket echo, any frames, pings answered
``GET /slow?ms=``                  the 100 bytes after that many milliseconds
``ANY /status/N``                  that status, with a short body where it may have one
``ANY /echo``                      ``{"line", "headers": [[name, value]…], "body"}`` of the request, bytes as latin-1
=================================  =================================================================================
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import os
import resource
import socket
import time
from collections.abc import Callable
from typing import cast
from urllib.parse import parse_qs

BUFFER = memoryview(bytearray(128 * 1024))
"""Every connection receives into this one buffer: what arrived is used up before the next read."""
CHUNK = bytes(range(256)) * 1024
HIGH_WATER = 4 * len(CHUNK)
SMALL = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\n" + b"x" * 100
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
MAX_HEAD = 1024 * 1024


class Connection(asyncio.BufferedProtocol):
    """One client: HTTP requests one after another, or frames once it is a WebSocket."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.pending = bytearray()
        self.feed: Callable[[], bool] = self.feed_head
        self.echoing: Echo | None = None
        self.busy = False
        self.closing = False
        self.left = 0
        self.received = 0
        self.on_body: Callable[[bytes], None] | None = None
        self.on_end: Callable[[], None] = self.finish
        self.resume: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; small answers leave at once."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=HIGH_WATER)

    def get_buffer(self, sizehint: int) -> memoryview:
        """The shared buffer."""
        return BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        """Feed what arrived to the current parser; bodies that are only counted are not copied."""
        if self.left > nbytes and self.on_body is None and not self.pending and self.feed == self.feed_body:
            self.left -= nbytes
            self.received += nbytes
            return
        if self.echoing is not None:
            self.frames(bytes(BUFFER[:nbytes]))
            return
        self.pending += BUFFER[:nbytes]
        self.pump()

    def pump(self) -> None:
        """Let the parsers eat until they want more bytes, or an answer is under way."""
        while self.pending and not self.busy and self.feed():
            pass

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget everything."""
        self.busy = True
        self.pending.clear()
        self.resume = None

    def pause_writing(self) -> None:
        """A slow reader: an echo stops reading too."""
        if self.resume is None:
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        """The reader caught up."""
        if self.resume is None:
            self.transport.resume_reading()
        else:
            self.resume()

    # Requests

    def feed_head(self) -> bool:
        """Parse one request head and start its answer."""
        end = self.pending.find(b"\r\n\r\n")
        if end < 0:
            if len(self.pending) > MAX_HEAD:
                self.transport.close()
            return False
        head = bytes(self.pending[:end])
        del self.pending[: end + 4]
        if head.startswith(b"GET / ") and b"onnection: close" not in head:
            self.transport.write(SMALL)
            return True
        self.request(head)
        return True

    def request(self, head: bytes) -> None:
        """Answer anything but the plainest GET."""
        line, _, rest = head.partition(b"\r\n")
        method, target, _ = line.split(b" ", 2)
        headers = [(name, value.strip()) for name, _, value in (h.partition(b":") for h in rest.split(b"\r\n") if h)]
        fields = {name.lower(): value for name, value in headers}
        self.closing = fields.get(b"connection", b"").lower() == b"close"
        path, _, query = target.partition(b"?")
        first, _, argument = path.lstrip(b"/").partition(b"/")
        if b"upgrade" in fields and first == b"ws":
            self.upgrade(fields)
            return
        if b"expect" in fields:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.route(method, first, argument, query, line, headers)
        self.body(fields)

    def route(
        self,
        method: bytes,
        first: bytes,
        argument: bytes,
        query: bytes,
        line: bytes,
        headers: list[tuple[bytes, bytes]],
    ) -> None:
        """Decide what happens with the body's bytes and at its end."""
        options = {key: value[-1] for key, value in parse_qs(query.decode("latin-1")).items()}
        self.on_body = None
        if first == b"":
            self.on_end = lambda: self.answer(200, b"x" * 100)
        elif first == b"bytes":
            self.on_end = lambda: self.download(int(argument), False, method == b"HEAD")
        elif first == b"chunked":
            self.on_end = lambda: self.download(int(argument), True, method == b"HEAD")
        elif first == b"sink":
            self.on_end = lambda: self.answer(200, b"%d" % self.received)
        elif first == b"copy":
            self.copy(headers)
        elif first == b"sse":
            self.on_end = lambda: self.sse(float(options.get("interval_ms", 10)) / 1000, int(options.get("count", 0)))
        elif first == b"slow":
            self.on_end = lambda: self.slow(float(options.get("ms", 1000)) / 1000)
        elif first == b"status":
            self.on_end = lambda: self.answer(int(argument), b"status %b\n" % argument)
        elif first == b"echo":
            self.echo(line, headers)
        else:
            self.on_end = lambda: self.answer(404, b"not here\n")

    def body(self, fields: dict[bytes, bytes]) -> None:
        """Set up the parser of the request's body; an empty one ends at once."""
        self.received = 0
        if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
            self.left, self.feed = 0, self.feed_chunk_size
        elif int(fields.get(b"content-length", b"0")):
            self.left, self.feed = int(fields[b"content-length"]), self.feed_body
        else:
            self.end_of_body()

    def feed_body(self) -> bool:
        """Take bytes of a body with Content-Length."""
        self.take()
        if self.left == 0:
            self.end_of_body()
        return True

    def take(self) -> None:
        """Take up to `left` bytes."""
        size = min(self.left, len(self.pending))
        if self.on_body is not None:
            self.on_body(bytes(self.pending[:size]))
        del self.pending[:size]
        self.left -= size
        self.received += size

    def feed_chunk_size(self) -> bool:
        """Read a chunk's size line; the last one also ends the trailers."""
        end = self.pending.find(b"\r\n")
        if end < 0:
            return False
        size = int(self.pending[:end].partition(b";")[0], 16)
        del self.pending[: end + 2]
        self.left = size
        self.feed = self.feed_chunk if size else self.feed_trailers
        return True

    def feed_chunk(self) -> bool:
        """Take a chunk's bytes and the line end behind them."""
        if self.left:
            self.take()
            return True
        if len(self.pending) < 2:
            return False
        del self.pending[:2]
        self.feed = self.feed_chunk_size
        return True

    def feed_trailers(self) -> bool:
        """Drop trailers up to the empty line."""
        end = self.pending.find(b"\r\n")
        if end < 0:
            return False
        del self.pending[: end + 2]
        if end == 0:
            self.end_of_body()
        return True

    def end_of_body(self) -> None:
        """The request is complete: answer it."""
        self.feed = self.feed_head
        self.busy = True
        self.on_end()

    # Answers

    def finish(self) -> None:
        """The answer is complete."""
        self.resume = None
        self.busy = False
        if self.closing:
            self.transport.close()
        else:
            self.pump()

    def answer(self, status: int, body: bytes, kind: bytes = b"text/plain") -> None:
        """Send a whole answer."""
        if status in (204, 304):
            self.transport.write(b"HTTP/1.1 %d Status\r\n\r\n" % status)
        else:
            head = b"HTTP/1.1 %d Status\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n" % (status, kind, len(body))
            self.transport.write(head + body)
        self.finish()

    def download(self, size: int, chunked: bool, head_only: bool) -> None:
        """Send `size` bytes as fast as the reader takes them."""
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n%b\r\n\r\n" % framing)
        self.left = 0 if head_only else size
        self.resume = lambda: self.more(chunked and not head_only)
        self.more(chunked and not head_only)

    def more(self, chunked: bool) -> None:
        """Write a chunk unless the transport's buffer is full; other connections get their turn before the next."""
        if self.transport.is_closing() or self.resume is None:
            return
        if self.left and self.transport.get_write_buffer_size() <= HIGH_WATER:
            part = CHUNK if self.left >= len(CHUNK) else CHUNK[: self.left]
            self.left -= len(part)
            if chunked:
                self.transport.writelines((b"%x\r\n" % len(part), part, b"\r\n"))
            else:
                self.transport.write(part)
            if self.left and self.transport.get_write_buffer_size() <= HIGH_WATER:
                asyncio.get_running_loop().call_soon(self.more, chunked)
        if self.left == 0:
            if chunked:
                self.transport.write(b"0\r\n\r\n")
            self.finish()

    def copy(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Repeat the body while it arrives."""
        fields = {name.lower(): value for name, value in headers}
        chunked = b"transfer-encoding" in fields
        framing = (
            b"Transfer-Encoding: chunked" if chunked else b"Content-Length: " + fields.get(b"content-length", b"0")
        )
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n%b\r\n\r\n" % framing)

        def piece(part: bytes) -> None:
            self.transport.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)

        def end() -> None:
            if chunked:
                self.transport.write(b"0\r\n\r\n")
            self.finish()

        self.on_body, self.on_end = piece, end

    def echo(self, line: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """Answer with the request as it arrived."""
        parts: list[bytes] = []

        def end() -> None:
            seen = {
                "line": line.decode("latin-1"),
                "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in headers],
                "body": b"".join(parts).decode("latin-1"),
            }
            self.answer(200, json.dumps(seen).encode(), b"application/json")

        self.on_body, self.on_end = parts.append, end

    def sse(self, interval: float, count: int) -> None:
        """Send timestamps; `count` 0 means until the client goes."""
        self.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        loop = asyncio.get_running_loop()
        start, sent = loop.time(), 0

        def event() -> None:
            nonlocal sent
            if self.transport.is_closing():
                return
            data = b"data: %d\n\n" % time.monotonic_ns()
            self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
            sent += 1
            if sent == count:
                self.transport.write(b"0\r\n\r\n")
                self.finish()
            else:
                loop.call_at(start + (sent + 1) * interval, event)

        loop.call_at(start + interval, event)

    def slow(self, seconds: float) -> None:
        """Answer later, if somebody is still there."""

        def late() -> None:
            if not self.transport.is_closing():
                self.answer(200, b"x" * 100)

        asyncio.get_running_loop().call_later(seconds, late)

    # WebSocket (RFC 6455)

    def upgrade(self, fields: dict[bytes, bytes]) -> None:
        """Accept the handshake; from here on frames are echoed."""
        accept = base64.b64encode(hashlib.sha1(fields.get(b"sec-websocket-key", b"") + GUID).digest())
        head = (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        )
        protocol = fields.get(b"sec-websocket-protocol", b"").partition(b",")[0].strip()
        chosen = b"\r\nSec-WebSocket-Protocol: " + protocol if protocol else b""
        self.transport.write(head + accept + chosen + b"\r\n\r\n")
        self.echoing = Echo()
        self.frames(bytes(self.pending))

    def frames(self, data: bytes) -> None:
        """Echo what arrived, in one write."""
        assert self.echoing is not None
        out = self.echoing.feed(data)
        if len(data) < 16384:
            self.transport.write(b"".join(out))
        else:
            self.transport.writelines(out)
        if self.echoing.closed:
            self.transport.close()


class Echo:
    """The echo's answers to a client's bytes: data frames are answered piece by piece, control frames whole."""

    def __init__(self) -> None:
        self.rest = b""
        self.left = 0
        self.key = b""
        self.done = 0
        self.closed = False

    def feed(self, data: bytes) -> list[bytes]:
        """The pieces to send for what arrived."""
        fresh = not self.rest and not self.left
        if fresh and data in KNOWN:
            return KNOWN[data]
        out: list[bytes] = []
        whole = self.rest + data if self.rest else data
        at = 0
        while at < len(whole) and not self.closed:
            used = self.payload(whole, at, out) if self.left else self.header(whole, at, out)
            if not used:
                break
            at += used
        self.rest = whole[at:]
        if fresh and not self.rest and not self.left and not self.closed and len(data) < 4096 and len(KNOWN) < 256:
            KNOWN[data] = [b"".join(out)]
        return out

    def payload(self, data: bytes, at: int, out: list[bytes]) -> int:
        """Echo what is there of the current frame's payload; how many bytes that was."""
        piece = data[at : at + self.left]
        turn = self.done % 4
        out.append(unmask(piece, self.key[turn:] + self.key[:turn]))
        self.left -= len(piece)
        self.done += len(piece)
        return len(piece)

    def header(self, data: bytes, at: int, out: list[bytes]) -> int:
        """Answer one frame's header, a control frame as a whole; how many bytes that was, 0 when more are needed."""
        there = len(data) - at
        size = data[at + 1] & 0x7F if there > 1 else 0
        length = 6 if size < 126 else 8 if size == 126 else 14
        opcode = data[at] & 0x0F
        if there < length or (opcode >= 8 and there < length + size):
            return 0
        self.key, self.done = data[at + length - 4 : at + length], 0
        if opcode >= 8:
            self.closed = opcode == 8
            body = unmask(data[at + length : at + length + size], self.key)
            if opcode != 10:
                out.append(bytes((0x8A if opcode == 9 else 0x88, size)) + body)
            return length + size
        out.append(data[at : at + 1] + bytes((data[at + 1] & 0x7F,)) + data[at + 2 : at + length - 4])
        self.left = int.from_bytes(data[at + 2 : at + length - 4], "big") if size >= 126 else size
        return length


KNOWN: dict[bytes, list[bytes]] = {}
"""Answers to short runs of whole frames seen before: load generators repeat themselves."""


def unmask(payload: bytes, key: bytes) -> bytes:
    """The payload with its mask taken off."""
    if key == b"\0\0\0\0" or not payload:
        return payload
    pad = (key * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")).to_bytes(len(payload), "big")


async def serve(host: str, port: int, path: str | None) -> None:
    """Listen until killed."""
    loop = asyncio.get_running_loop()
    if path is not None:
        server = await loop.create_unix_server(Connection, path, backlog=4096)
        print(f"listening {path}", flush=True)
    else:
        server = await loop.create_server(Connection, host, port, backlog=4096, family=socket.AF_INET)
        print("listening {}:{}".format(*server.sockets[0].getsockname()[:2]), flush=True)
    await server.serve_forever()


def main() -> None:
    """Parse the arguments, raise the descriptor limit, serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", nargs="?", type=int, default=int(os.environ.get("PORT", "0")))
    parser.add_argument("--host", default=os.environ.get("HOST", "127.0.0.1"))
    parser.add_argument("--unix", metavar="PATH")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        import uvloop
    except ImportError:
        pass
    else:
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(serve(options.host, options.port, options.unix))


if __name__ == "__main__":
    main()
