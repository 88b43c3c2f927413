"""A job server at its root or below a prefix, as with web frameworks, that redirects and sets cookies.

Run it as ``prefix_server.py [--prefix PATH] [--port N] [--delay SECONDS] [--unready SECONDS]``: it listens on loopback
after a delay, on ``$PORT`` or any free port unless told, and is not ready (503) for a while then. Outside its prefix
everything is 404.

Below it: ``/redirect?to=URL`` is a 302 there, ``/cookie?set=VALUE`` sets that cookie, ``/header?NAME=VALUE`` has those
headers, anything else answers with ``{"path", "headers", "env", "length"}`` of the request, the process and the body.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--prefix", default="")
parser.add_argument("--port", type=int, default=int(os.environ.get("PORT", "0")))
parser.add_argument("--delay", type=float, default=0)
parser.add_argument("--unready", type=float, default=0)
options = parser.parse_args()


class Handler(BaseHTTPRequestHandler):
    """Answers the paths of the module's docstring."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer any request."""
        length = len(self.rfile.read(int(self.headers.get("Content-Length", "0"))))
        target = urlsplit(self.path)
        prefix = options.prefix.rstrip("/")
        if not (target.path + "/").startswith(prefix + "/"):
            self._answer(404, b"outside\n")
            return
        if time.monotonic() < ready_at:
            self._answer(503, b"not yet\n")
            return
        path = target.path[len(prefix) :]
        query = {key: values[-1] for key, values in parse_qs(target.query).items()}
        if path == "/redirect":
            self._answer(302, b"", ("Location", query["to"]))
        elif path == "/header":
            self._answer(200, b"told", *query.items())
        elif path == "/cookie":
            self._answer(200, b"set", ("Set-Cookie", query["set"]))
        else:
            headers = {name.lower(): value for name, value in self.headers.items()}
            seen = {"path": self.path, "headers": headers, "env": dict(os.environ), "length": length}
            self._answer(200, json.dumps(seen).encode())

    do_POST = do_HEAD = do_GET

    def _answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Log nothing."""


time.sleep(options.delay)
ready_at = time.monotonic() + options.unready
ThreadingHTTPServer.daemon_threads = True
ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()
