"""A job server with scripted misbehaviour, byte by byte on raw sockets; the request's path chooses the script.

Standard library only. Run it as ``corner_server.py [PORT]`` (default: ``$PORT``, else any free port, printed as
``listening HOST:PORT``). Unless it says otherwise a path reads the whole request first and keeps the connection open.

What it saw:

- ``/last``: the raw bytes of the last request but those to ``/last`` and ``/seen``, with what was read of its body.
- ``/seen``: ``{"open", "accepted", "requests", "dropped"}``: connections now and ever, requests by path, and the paths
  whose client went away before the answer was complete.
- ``/record/…``: reads the request, answers ``recorded``.

Good behaviour that is seldom met:

- ``/set-cookies`` three Set-Cookie; ``/odd-headers`` obs-text bytes, underscores, an empty value; ``/no-reason`` no
  reason phrase; ``/hop-by-hop`` a Connection header that names another one; ``/huge-header?bytes=N``;
  ``/many-headers?count=N``.
- ``/early-hints`` 103, then 200; ``/informational`` 102, 103, 103, then 200; ``/expect`` 100 before it reads the body;
  ``/expect-refuse`` 417 and close, the body never read.
- ``/no-content`` 204; ``/not-modified`` 304 with Content-Length 1234; ``/head`` 12345 bytes, none of them for HEAD.
- ``/http10`` an HTTP/1.0 answer without length, until close; ``/close-delimited`` the same in HTTP/1.1; ``/trailers``
  chunked with them; ``/drip?count=&ms=`` a chunk at a time; ``/flood`` an endless chunked body.
- ``/upgrade`` 101 to any protocol, ``first`` in the same segment, then an echo; ``/upgrade-refuse`` 426 with a body.
- ``/early-answer`` 200 before the body is read, then reads it; ``/slow-read?ms=`` reads the body 64 KiB at a time.
- ``/raw?b64=BYTES[&keep=1]`` exactly those bytes (URL-safe base64), then close.

Misbehaviour:

- ``/close`` closes without an answer; ``/reset`` resets; ``/silent`` never answers; ``/cut-head`` half a head, then
  close; ``/early-close`` answers 413 and closes, the body never read; ``/once`` answers well and closes unannounced.
- ``/malformed/NAME`` with NAME one of the keys of `MALFORMED`.
- ``/both-framings`` Content-Length and chunked; ``/two-lengths`` two that differ; ``/bad-length`` no number.
- ``/short-body`` says 1000, sends 500, closes; ``/short-reset`` the same and a reset; ``/long-body`` says 10, sends 20.
- ``/cut-chunk`` dropped within a chunk; ``/cut-between`` dropped after a whole chunk, the last one missing.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

MALFORMED = {
    "garbage": b"\x16\x03\x01 this is not HTTP\r\n\r\n",
    "version": b"HTTP/9.9 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "status": b"HTTP/1.1 twenty OK\r\nContent-Length: 2\r\n\r\nok",
    "header": b"HTTP/1.1 200 OK\r\nno colon here\r\nContent-Length: 2\r\n\r\nok",
    "space": b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
    "fold": b"HTTP/1.1 200 OK\r\nX-Folded: one\r\n two\r\nContent-Length: 2\r\n\r\nok",
    "nul": b"HTTP/1.1 200 OK\r\nX-Nul: a\0b\r\nContent-Length: 2\r\n\r\nok",
    "bare-cr": b"HTTP/1.1 200 OK\r\nX-CR: a\rSet-Cookie: b=c\r\nContent-Length: 2\r\n\r\nok",
    "chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n0\r\n\r\n",
    "chunk-length": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\ntoo long\r\n0\r\n\r\n",
    "encoding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, nonsense\r\n\r\nok",
}
"""Answers that break HTTP; each is sent as it is, then the connection is closed."""

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
MAX_RECORD = 1024 * 1024
"""About how many bytes of a request are kept for ``/last``."""
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER value that makes close() a reset."""

FIXED = {
    "set-cookies": OK
    + b"Set-Cookie: a=1; Path=/\r\nSet-Cookie: b=2\r\nset-cookie: c=3, d\r\nContent-Length: 2\r\n\r\nok",
    "odd-headers": OK + b"X-Obs: caf\xe9\r\nx_under_score: 1\r\nX-Empty:\r\nContent-Length: 2\r\n\r\nok",
    "no-reason": b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok",
    "hop-by-hop": OK
    + b"Connection: keep-alive, X-Hop\r\nKeep-Alive: timeout=9\r\nX-Hop: 1\r\nProxy-Authenticate: Basic\r\n"
    b"X-End: 1\r\nContent-Length: 2\r\n\r\nok",
    "early-hints": b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
    + OK
    + b"Content-Length: 2\r\n\r\nok",
    "informational": b"HTTP/1.1 102 Processing\r\n\r\n"
    + b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" * 2
    + OK
    + b"Content-Length: 2\r\n\r\nok",
    "no-content": b"HTTP/1.1 204 No Content\r\nX-End: 1\r\n\r\n",
    "not-modified": b'HTTP/1.1 304 Not Modified\r\nETag: "e"\r\nContent-Length: 1234\r\n\r\n',
    "trailers": OK
    + b"Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\nSet-Cookie: evil=1\r\n\r\n",
    "upgrade-refuse": b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: other\r\nConnection: Upgrade\r\n"
    b"Content-Length: 2\r\n\r\nno",
    "long-body": OK + b"Content-Length: 10\r\n\r\n" + b"0123456789" * 2,
}
"""Answers after which the connection stays open."""

FINAL = {
    "http10": b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil close",
    "close-delimited": OK + b"Connection: close\r\n\r\nuntil close",
    "close": b"",
    "cut-head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "once": OK + b"Content-Length: 4\r\n\r\nonce",
    "both-framings": OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "two-lengths": OK + b"Content-Length: 2\r\nContent-Length: 5\r\n\r\nok",
    "bad-length": OK + b"Content-Length: two\r\n\r\nok",
    "short-body": OK + b"Content-Length: 1000\r\n\r\n" + b"x" * 500,
    "cut-chunk": CHUNKED + b"3e8\r\n" + b"x" * 500,
    "cut-between": CHUNKED + b"2\r\nok\r\n",
}
"""Answers after which the connection is closed."""


class Gone(Exception):
    """The client closed or reset its connection."""


class Seen:
    """Requests seen on all connections, for ``/last`` and ``/seen``."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.last = b""
        self.open = 0
        self.accepted = 0
        self.requests: dict[str, int] = {}
        self.dropped: list[str] = []

    def report(self) -> bytes:
        """The answer to ``/seen``."""
        with self.lock:
            seen = {"open": self.open, "accepted": self.accepted, "requests": self.requests, "dropped": self.dropped}
            return json.dumps(seen).encode()


class Client:
    """One connection: reads requests, plays the script of each path."""

    def __init__(self, sock: socket.socket, seen: Seen) -> None:
        self.sock = sock
        self.seen = seen
        self.raw = b""
        self.rest = b""
        self.fields: dict[str, str] = {}
        self.options: dict[str, str] = {}
        self.method = ""
        self.path = ""

    def run(self) -> None:
        """Serve until either side closes."""
        with self.seen.lock:
            self.seen.open += 1
            self.seen.accepted += 1
        try:
            while self.read_head() and self.play():
                pass
        except (Gone, OSError):
            with self.seen.lock:
                self.seen.dropped.append(self.path)
        finally:
            with self.seen.lock:
                self.seen.open -= 1
            self.sock.close()

    # Reading

    def receive(self, size: int = 65536) -> bytes:
        """At least one byte.

        Raises:
            Gone: there are no more.
        """
        if self.rest:
            data, self.rest = self.rest[:size], self.rest[size:]
        else:
            data = self.sock.recv(size)
        if not data:
            raise Gone
        if len(self.raw) < MAX_RECORD:
            self.raw += data
        return data

    def read_until(self, mark: bytes) -> bytes:
        """Return everything up to and including `mark`."""
        data = b""
        while mark not in data:
            data += self.receive()
        line, _, rest = data.partition(mark)
        if rest and self.raw.endswith(rest):
            self.raw = self.raw[: -len(rest)]
        self.rest = rest + self.rest
        return line + mark

    def read_head(self) -> bool:
        """Read one request's head; False once the client closed between requests."""
        self.raw = b""
        if not self.rest:
            self.rest = self.sock.recv(65536)
            if not self.rest:
                return False
        head = self.read_until(b"\r\n\r\n").decode("latin-1")
        line, *lines = head.rstrip("\r\n").split("\r\n")
        self.method, target, _ = line.split(" ", 2)
        self.fields = {name.lower(): value.strip() for name, _, value in (h.partition(":") for h in lines)}
        parts = urlsplit(target)
        self.path = parts.path
        self.options = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        with self.seen.lock:
            self.seen.requests[self.path] = self.seen.requests.get(self.path, 0) + 1
        return True

    def read_body(self, pause: float = 0.0) -> None:
        """Read the request's body, sleeping `pause` seconds between reads."""
        if self.fields.get("transfer-encoding", "").lower() == "chunked":
            while size := int(self.read_until(b"\r\n").split(b";")[0], 16):
                self.read_exactly(size + 2, pause)
            while self.read_until(b"\r\n") != b"\r\n":
                pass
        else:
            self.read_exactly(int(self.fields.get("content-length", "0")), pause)

    def read_exactly(self, size: int, pause: float) -> None:
        """Read and keep `size` bytes."""
        while size:
            size -= len(self.receive(min(size, 65536)))
            if pause:
                time.sleep(pause)

    # Answering

    def play(self) -> bool:
        """Play the path's script and return whether the connection stays open."""
        name = self.path.strip("/")
        script = SCRIPTS.get(name.split("/")[0])
        if script is not None:
            keep = script(self)
        else:
            self.read_body()
            keep = self.play_bytes(name)
        if script is not record:  # which did so before its answer: later it would cover the next request's
            self.remember(name)
        return keep

    def play_bytes(self, name: str) -> bool:
        """Answer with fixed bytes."""
        kind, _, key = name.partition("/")
        if name in FIXED:
            self.sock.sendall(FIXED[name])
            return True
        if name in FINAL or (kind == "malformed" and key in MALFORMED):
            self.sock.sendall(FINAL[name] if name in FINAL else MALFORMED[key])
            return False
        self.answer(404, b"no such corner\n")
        return True

    def remember(self, name: str) -> None:
        """Keep the request for ``/last``."""
        if name not in ("last", "seen"):
            with self.seen.lock:
                self.seen.last = self.raw

    def answer(self, status: int, body: bytes, headers: bytes = b"") -> None:
        """Send one well-formed answer."""
        head = b"HTTP/1.1 %d Status\r\n%bContent-Length: %d\r\n\r\n" % (status, headers, len(body))
        self.sock.sendall(head if self.method == "HEAD" else head + body)

    def number(self, name: str, default: int) -> int:
        """A number out of the query."""
        return int(self.options.get(name, default))

    def leave(self) -> bool:
        """Close our side with the body unread, and wait for the client's close: a reset could drop the response."""
        self.sock.shutdown(socket.SHUT_WR)
        poll = select.poll()
        poll.register(self.sock, select.POLLRDHUP)
        poll.poll(1000)
        return False

    def wait_gone(self) -> None:
        """Wait until the client goes away.

        Raises:
            Gone: it went.
        """
        while True:
            self.receive()


Script = Callable[[Client], bool]


def last(client: Client) -> bool:
    """The last request's raw bytes."""
    client.read_body()
    client.answer(200, client.seen.last, b"Content-Type: application/octet-stream\r\n")
    return True


def seen(client: Client) -> bool:
    """What happened so far."""
    client.read_body()
    client.answer(200, client.seen.report(), b"Content-Type: application/json\r\n")
    return True


def record(client: Client) -> bool:
    """Read all, say so; the request is remembered before it is answered."""
    client.read_body()
    client.remember("record")
    client.answer(200, b"recorded")
    return True


def huge_header(client: Client) -> bool:
    """One header of that many bytes."""
    client.read_body()
    client.answer(200, b"ok", b"X-Huge: " + b"h" * client.number("bytes", 10000) + b"\r\n")
    return True


def many_headers(client: Client) -> bool:
    """That many small headers."""
    client.read_body()
    client.answer(200, b"ok", b"".join(b"X-H%d: %d\r\n" % (i, i) for i in range(client.number("count", 100))))
    return True


def head(client: Client) -> bool:
    """12345 bytes, or only their number."""
    client.read_body()
    client.answer(200, b"h" * 12345)
    return True


def expect(client: Client) -> bool:
    """Ask for the body, then answer with its size and whether the client had waited for us."""
    waited = "expect" in client.fields
    if waited:
        client.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    client.read_body()
    client.answer(200, b"asked" if waited else b"not asked")
    return True


def expect_refuse(client: Client) -> bool:
    """Refuse the body."""
    client.answer(417, b"no", b"Connection: close\r\n")
    return client.leave()


def early_answer(client: Client) -> bool:
    """Answer first, read afterwards."""
    client.answer(200, b"early")
    client.read_body()
    return True


def early_close(client: Client) -> bool:
    """Answer and close with the body unread."""
    client.answer(413, b"too large", b"Connection: close\r\n")
    return client.leave()


def slow_read(client: Client) -> bool:
    """Read slowly."""
    client.read_body(client.number("ms", 10) / 1000)
    client.answer(200, b"read")
    return True


def silent(client: Client) -> bool:
    """Never answer."""
    client.remember("silent")
    client.wait_gone()
    return False


def reset(client: Client) -> bool:
    """Reset without an answer."""
    client.read_body()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    return False


def short_reset(client: Client) -> bool:
    """Half the body, then a reset."""
    client.read_body()
    client.sock.sendall(FINAL["short-body"])
    time.sleep(0.05)
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    return False


def drip(client: Client) -> bool:
    """A chunk now and then."""
    client.read_body()
    client.sock.sendall(CHUNKED)
    for _ in range(client.number("count", 10)):
        client.sock.sendall(b"4\r\ndrip\r\n")
        time.sleep(client.number("ms", 10) / 1000)
    client.sock.sendall(b"0\r\n\r\n")
    return True


def flood(client: Client) -> bool:
    """Chunks for ever."""
    client.read_body()
    client.sock.sendall(CHUNKED)
    while True:
        client.sock.sendall(b"10000\r\n" + b"f" * 65536 + b"\r\n")


def raw(client: Client) -> bool:
    """Bytes out of the query."""
    client.read_body()
    client.sock.sendall(base64.urlsafe_b64decode(client.options["b64"]))
    return "keep" in client.options


def upgrade(client: Client) -> bool:
    """Switch to whatever was asked for, and echo."""
    protocol = client.fields.get("upgrade", "none").encode("latin-1")
    client.sock.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\nfirst" % protocol
    )
    with contextlib.suppress(Gone):
        while True:
            client.sock.sendall(client.receive())
    return False


SCRIPTS: dict[str, Script] = {
    "last": last,
    "seen": seen,
    "record": record,
    "huge-header": huge_header,
    "many-headers": many_headers,
    "head": head,
    "expect": expect,
    "expect-refuse": expect_refuse,
    "early-answer": early_answer,
    "early-close": early_close,
    "slow-read": slow_read,
    "silent": silent,
    "reset": reset,
    "short-reset": short_reset,
    "drip": drip,
    "flood": flood,
    "raw": raw,
    "upgrade": upgrade,
}


def main() -> None:
    """Listen until killed, a thread per connection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", nargs="?", type=int, default=int(os.environ.get("PORT", "0")))
    parser.add_argument("--host", default=os.environ.get("HOST", "127.0.0.1"))
    options = parser.parse_args()
    everything = Seen()
    with socket.create_server((options.host, options.port), backlog=1024) as server:
        print("listening {}:{}".format(*server.getsockname()[:2]), flush=True)
        while True:
            sock, _ = server.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=Client(sock, everything).run, daemon=True).start()


if __name__ == "__main__":
    main()
