"""The agent's loopback HTTP endpoint, at which jobs report their ports: ``GET <endpoint>?job_id=<uid>&port=<port>``.

The answer is 200 ``OK``, or 400 with the reason as text, as in the original. A job's uid is 128 random bits, so that no
job can report for another by guessing.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from gevent.pywsgi import WSGIServer

from prouter.errors import InvalidRequest, PRouterError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["PATH", "PortEndpoint"]

PATH = "/notify_port"

_log = logging.getLogger("prouter.agent")


class PortEndpoint:
    """The endpoint's server.

    Args:
        report: called with job uid and port; a `PRouterError` it raises becomes the 400 answer.
    """

    def __init__(self, report: Callable[[str, int], None]) -> None:
        self._report = report
        self._server: WSGIServer | None = None

    def open(self, port: int | None = None) -> int:
        """Listen on loopback and serve; returns the port.

        Args:
            port: the one to prefer: jobs that outlived the agent still know it. If it is taken, any.
        """
        listener = _listen(port or 0) or _listen(0)
        assert listener is not None
        self._server = WSGIServer(listener, self._answer, log=None, error_log=_log)
        self._server.start()
        return int(listener.getsockname()[1])

    @property
    def url(self) -> str:
        """What jobs get as their endpoint."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_port}{PATH}"

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.stop(timeout=0)
            self._server = None

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        status, text = "200 OK", "OK"
        try:
            self._take(environ)
        except PRouterError as error:
            status, text = "400 Bad Request", error.detail
        body = text.encode()
        start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
        return [body]

    def _take(self, environ: dict[str, Any]) -> None:
        if environ["PATH_INFO"].rstrip("/") != PATH:
            raise InvalidRequest(f"ports are reported at {PATH}")
        query = parse_qs(environ["QUERY_STRING"])
        uid, port = query.get("job_id", [""])[0], query.get("port", [""])[0]
        if not uid:
            raise InvalidRequest("job_id is missing")
        if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise InvalidRequest(f"port must be a number between 1 and 65535, not '{port[:20]}'")
        self._report(uid, int(port))


def _listen(port: int) -> socket.socket | None:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
    except OSError:
        listener.close()
        if port == 0:
            raise
        return None
    listener.setblocking(False)
    return listener
