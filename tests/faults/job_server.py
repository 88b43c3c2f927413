"""The job server of the fault tests: every byte it sends and receives can be checked. Standard library only.

=========================  ========================================================================================
``GET /pattern/SEED/N``    N bytes of the pattern with that seed; with ``?chunked=1`` in chunks
``POST /check/SEED``       checks the body (Content-Length or chunked); answers ``{"bytes", "error"}``
``GET /hang``              never answers; ends when the client's side is closed
``GET /open``              how many connections are open besides this one
``GET /slow?ms=``          ``slow`` after that many milliseconds
=========================  ========================================================================================
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.faults.pattern import Checker, Pattern

_PIECE = 65536
_open = 0
_lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    """Serves the paths that the module's docstring lists."""

    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        global _open
        with _lock:
            _open += 1
        super().setup()

    def finish(self) -> None:
        global _open
        try:
            super().finish()
        finally:
            with _lock:
                _open -= 1

    def do_GET(self) -> None:
        """Send a pattern, or one of the small responses."""
        parts = urlsplit(self.path)
        options = {key: value[-1] for key, value in parse_qs(parts.query).items()}
        words = parts.path.strip("/").split("/")
        if words[0] == "pattern":
            self._send(int(words[1]), int(words[2]), chunked="chunked" in options)
        elif words[0] == "hang":
            self.close_connection = True
            self.connection.recv(1)
        elif words[0] == "open":
            self._answer(b"%d" % (_open - 1))
        elif words[0] == "slow":
            time.sleep(float(options.get("ms", "1000")) / 1000)
            self._answer(b"slow")
        else:
            self._answer(b"hello")

    def do_POST(self) -> None:
        """Check a request body."""
        checker = Checker(int(urlsplit(self.path).path.split("/")[-1]))
        error = None
        for data in self._body():
            try:
                checker.feed(data)
            except ValueError as problem:
                error = error or str(problem)
        self._answer(json.dumps({"bytes": checker.position, "error": error}).encode())

    def _body(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            yield from self._read(int(self.headers.get("Content-Length", "0")))
            return
        while size := int(self.rfile.readline(), 16):
            yield from self._read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _read(self, size: int) -> Iterator[bytes]:
        while size:
            data = self.rfile.read(min(size, _PIECE))
            if not data:
                raise ConnectionError("the body broke off")
            size -= len(data)
            yield data

    def _send(self, seed: int, size: int, *, chunked: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(size))
        self.end_headers()
        for block in Pattern(seed).blocks(size, 4 * _PIECE):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if chunked else block)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log no requests, only what goes wrong."""


class Server(ThreadingHTTPServer):
    """One thread per connection."""

    daemon_threads = True
    request_queue_size = 1024

    def handle_error(self, request: object, client_address: object) -> None:
        """Log a broken connection in one line."""
        print("connection broke:", repr(sys.exc_info()[1]), file=sys.stderr, flush=True)


if __name__ == "__main__":
    Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
