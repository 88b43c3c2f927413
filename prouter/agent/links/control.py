"""The agent's own small HTTP API (``control.*``), as the original has it: info, connections, jobs, shutdown."""

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
"""Connections at the same time; others wait for one of these to end. Jobs need the agent's descriptors more."""
_LONGEST = 10.0
"""Seconds that a connection may take in all."""
_FROM_A_PAGE = frozenset({"HTTP_ORIGIN", "HTTP_SEC_FETCH_SITE"})
"""Browsers send these, programs do not: no page of any site stops an agent through a visitor's browser."""

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class _Handler(WSGIHandler):
    """One connection, which costs little whatever comes over it."""

    def handle(self) -> None:
        """Serve its requests, within a bounded time."""
        with gevent.Timeout(_LONGEST, False):  # type: ignore[arg-type]
            super().handle()

    def _handle_client_error(self, ex: Exception) -> tuple[str, bytes]:
        """What is no HTTP: an event like others, where gevent prints a traceback for some of it."""
        log.info("event=bad_request error=%.200r", str(ex) or type(ex).__name__)
        body = b"Bad Request"
        head = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        return "400", head + body

    def log_error(self, msg: str, *args: object) -> None:
        """What else gevent finds worth telling of a client."""
        log.info("event=bad_request error=%.200r", msg % args if args else msg)


class Control:
    """Serves on one interface until `close`.

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
        self._names = HostNames(resolve=False)  # the agent's loop must not wait for it

    def open(self, interface: str, port: int) -> str:
        """Begin to serve; the base URL.

        Raises:
            OSError: the address cannot be had.
        """
        server = self._server = WSGIServer(
            (interface, port), self._answer, log=None, error_log=log, spawn=_CONNECTIONS, handler_class=_Handler
        )
        server.start()
        host = f"[{interface}]" if ":" in interface else interface
        return f"http://{host}:{server.server_port}"

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.stop(timeout=1)

    def _answer(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        route = self._routes.get(environ["PATH_INFO"].rstrip("/"))
        headers = [
            ("Content-Type", "application/json"),
            ("Cache-Control", "no-store, must-revalidate"),
            ("Expires", "0"),
        ]
        if not self._names.accept(environ.get("HTTP_HOST", "localhost")):
            status, body = "421 Misdirected Request", {"detail": "use the IP address, localhost or the machine's name"}
        elif route is None:
            status, body = "404 Not Found", {"detail": f"only {', '.join(self._routes)} are here"}
        elif environ["REQUEST_METHOD"] not in (route[0], "HEAD" if route[0] == "GET" else route[0]):
            status, body = "405 Method Not Allowed", {"detail": f"use {route[0]}"}
            headers.append(("Allow", route[0]))
        elif route[0] == "POST" and not _FROM_A_PAGE.isdisjoint(environ):
            status, body = "403 Forbidden", {"detail": "web pages may not do this"}
        else:
            status, body = "200 OK", route[1]()
        data = json.dumps(body).encode() if body else b""
        headers.append(("Content-Length", str(len(data))))
        start_response(status, headers)
        return [data]

    def _shut_down(self) -> dict[str, Any]:
        self._shutdown()
        return {}
