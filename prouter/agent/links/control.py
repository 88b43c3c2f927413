"""The agent's local HTTP API (``control.*``), as in the original pRouter: info, connections, jobs, shutdown."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from typing import Any

import gevent
from gevent.pywsgi import WSGIHandler, WSGIServer

from prouter.host_names import HostNames

__all__ = ["Control"]

log = logging.getLogger("prouter.agent.links.control")

_CONNECTIONS = 64
"""Connections at the same time; further ones wait. The agent's descriptors are for jobs first."""
_LONGEST = 10.0
"""Seconds for which a connection may last."""
_FROM_A_PAGE = frozenset({"HTTP_ORIGIN", "HTTP_SEC_FETCH_SITE"})
"""Headers that browsers send and programs do not. No web page may stop an agent through a visitor's browser."""

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class _Handler(WSGIHandler):
    """One connection, with bounded cost whatever the client sends."""

    def handle(self) -> None:
        """Serve the requests of the connection within `_LONGEST` seconds."""
        with gevent.Timeout(_LONGEST, False):  # type: ignore[arg-type]
            super().handle()

    def _handle_client_error(self, ex: Exception) -> tuple[str, bytes]:
        """Log a request that is not HTTP as an event, where gevent would print a traceback, and return the response."""
        log.info("event=bad_request error=%s", type(ex).__name__)  # its text may repeat what the client sent
        body = b"Bad Request"
        head = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        return "400", head + body

    def log_error(self, msg: str, *args: object) -> None:
        """Log what else gevent reports about a client."""
        log.info("event=bad_request error=%.200r", msg)  # without `args`, which may hold what the client sent


class Control:
    """HTTP server on one interface.

    Args:
        info: answers ``GET /info``.
        connections: answers ``GET /connections``.
        jobs: answers ``GET /jobs``.
        shutdown: carries out ``POST /shutdown``.
    """

    def __init__(
        self,
        *,
        info: Callable[[], dict[str, Any]],
        connections: Callable[[], dict[str, Any]],
        jobs: Callable[[], dict[str, Any]],
        shutdown: Callable[[], None],
    ) -> None:
        self._shutdown = shutdown
        self._routes: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
            "/info": ("GET", info),
            "/connections": ("GET", connections),
            "/jobs": ("GET", jobs),
            "/shutdown": ("POST", self._shut_down),
        }
        self._server: WSGIServer | None = None
        self._names = HostNames(resolve=False)  # a look-up would block the agent's event loop

    def open(self, interface: str, port: int) -> str:
        """Start to serve; return the base URL.

        Args:
            interface: address to listen on.
            port: 0 for any free one.

        Raises:
            OSError: the address cannot be bound.
        """
        server = self._server = WSGIServer(
            (interface, port), self._answer, log=None, error_log=log, spawn=_CONNECTIONS, handler_class=_Handler
        )
        server.start()
        host = f"[{interface}]" if ":" in interface else interface
        return f"http://{host}:{server.server_port}"

    def close(self) -> None:
        """Stop serving. Idempotent."""
        if self._server is not None:
            self._server.stop(timeout=1)

    def _answer(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        route = self._routes.get(environ["PATH_INFO"].rstrip("/"))
        headers = [
            ("Content-Type", "application/json"),
            ("Cache-Control", "no-store, must-revalidate"),
            ("Expires", "0"),
        ]
        method = environ["REQUEST_METHOD"]
        body: dict[str, Any]
        if not self._names.accept(environ.get("HTTP_HOST", "localhost")):
            status, text = "421 Misdirected Request", "the Host header names another machine; use localhost"
            body = {"detail": f"{text}, the IP address or this machine's name"}
        elif route is None:
            status, text = "404 Not Found", f"there is nothing at this path; the agent has {', '.join(self._routes)}"
            body = {"detail": text}
        elif method not in (route[0], "HEAD" if route[0] == "GET" else route[0]):
            status, body = "405 Method Not Allowed", {"detail": f"{method} is not allowed here; use {route[0]}"}
            headers.append(("Allow", route[0]))
        elif route[0] == "POST" and not _FROM_A_PAGE.isdisjoint(environ):
            status, body = "403 Forbidden", {"detail": "web pages may not stop an agent; use a program such as curl"}
        else:
            status, body = "200 OK", route[1]()
        data = json.dumps(body).encode() if body else b""
        headers.append(("Content-Length", str(len(data))))
        start_response(status, headers)
        return [data]

    def _shut_down(self) -> dict[str, Any]:
        self._shutdown()
        return {}
