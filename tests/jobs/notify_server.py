"""A job server as written for the original pRouter: it binds a free port, reports it by HTTP, and serves.

Standard library only. The port is reported with ``GET $DA__PAGENT__JOB_ENDPOINT?job_id=$DA__PAGENT__JOB_ID&port=PORT``.

Paths: ``GET /`` greets, ``GET /env`` gives the environment as JSON, ``GET /cwd`` the working directory, ``POST /echo``
repeats the body, ``POST /quit?code=N`` ends the process with that exit code.
"""

from __future__ import annotations

import json
import os
import threading
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers the paths of the module's docstring."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Greet, or tell what the job sees."""
        path = urllib.parse.urlsplit(self.path).path
        if path == "/":
            self._answer(200, b"hello from the job\n", "text/plain")
        elif path == "/env":
            self._answer(200, json.dumps(dict(os.environ)).encode(), "application/json")
        elif path == "/cwd":
            self._answer(200, os.getcwd().encode(), "text/plain")
        else:
            self._answer(404, b"not here\n", "text/plain")

    def do_POST(self) -> None:
        """Repeat the body, or end."""
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        target = urllib.parse.urlsplit(self.path)
        if target.path == "/echo":
            self._answer(200, body, self.headers.get("Content-Type", "application/octet-stream"))
        elif target.path == "/quit":
            self._answer(200, b"bye\n", "text/plain")
            code = int(urllib.parse.parse_qs(target.query).get("code", ["0"])[0])
            self.close_connection = True
            threading.Thread(target=os._exit, args=(code,)).start()
        else:
            self._answer(404, b"not here\n", "text/plain")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Log nothing, so that stderr has only what tests look for."""


def report(port: int) -> None:
    """Tell the agent which port this job serves.

    Raises:
        KeyError: not run as a job.
        urllib.error.HTTPError: the agent refused the report.
    """
    query = urllib.parse.urlencode({"job_id": os.environ["DA__PAGENT__JOB_ID"], "port": port})
    with urllib.request.urlopen(f"{os.environ['DA__PAGENT__JOB_ENDPOINT']}?{query}", timeout=10) as answer:
        answer.read()


def main() -> None:
    """Bind, report, serve until killed."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    report(server.server_port)
    server.serve_forever()


if __name__ == "__main__":
    main()
