"""A job whose page tries to use its visitor: it reads what it can of given URLs, in every way that a page has.

Standard library only. ``/`` and everything without a file below gets the page, whose script is `hostile.js` beside this
file. The response tries to plant cookies for the router's whole origin. ``/ws`` speaks WebSocket (one frame), ``/echo``
returns the request's fields, ``/sw.js`` is a service worker, ``/secret`` is what another job's page is after.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SECRET = sys.argv[1]
SCRIPT = (Path(__file__).parent / "hostile.js").read_bytes()
PAGE = b"""<!doctype html><title>hostile</title><link rel="stylesheet" href="style.css"><p id="styled">page</p>
<img id="image" src="image.svg"><script src="script.js"></script><script type="module" src="module.js"></script>
"""
FILES = {
    "/style.css": ("text/css", b"@font-face { font-family: F; src: url(font.woff2) } #styled { color: rgb(1, 2, 3) }"),
    "/image.svg": ("image/svg+xml", b'<svg xmlns="http://www.w3.org/2000/svg" width="7" height="7"/>'),
    "/script.js": ("text/javascript", SCRIPT),
    "/module.js": ("text/javascript", b"import { seven } from './part.js'; window.seven = seven;"),
    "/part.js": ("text/javascript", b"export const seven = 7;"),
    "/sw.js": ("text/javascript", b"onfetch = event => event.respondWith(new Response('taken over'));"),
    "/data.json": ("application/json", b'{"points": [1, 2, 3]}'),
    "/secret": ("text/html", f"<title>secret</title><p>{SECRET}</p>".encode()),
    "/secret.js": ("text/javascript", f"window.stolen = {SECRET!r};".encode()),
}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Serve a file, the page, or a WebSocket."""
        path = self.path.partition("?")[0]
        if path == "/ws" and "Upgrade" in self.headers:
            self._websocket()
        elif path == "/echo":
            self._send("application/json", json.dumps(dict(self.headers)).encode())
        else:
            self._send(*FILES.get(path, ("text/html", PAGE)))

    def do_POST(self) -> None:
        """Record a change."""
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        with Path("changes").open("a") as file:
            file.write(f"{self.path}\n")
        self._send("text/plain", b"changed")

    def _send(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Service-Worker-Allowed", "/")
        for cookie in ("own=1", "prouter_session=planted; Path=/", "planted_by_field=1; Path=/; Domain=localhost"):
            self.send_header("Set-Cookie", cookie)
        self.end_headers()
        self.wfile.write(body)

    def _websocket(self) -> None:
        key = self.headers.get("Sec-WebSocket-Key", "") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        with Path("sockets").open("a") as file:
            file.write("opened\n")
        text = f"ws {SECRET}".encode()
        self.wfile.write(bytes((0x81, len(text))) + text)
        self.close_connection = True


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
