"""TCP to a port of a job: the client's connection becomes one to the port, as raw bytes or as a WebSocket."""

from __future__ import annotations

import logging
import re
import time
from typing import TYPE_CHECKING

import falcon

from prouter.errors import (
    AgentUnavailable,
    InvalidRequest,
    JobEnded,
    JobTimeout,
    JobUnreachable,
    NotFound,
    NotSupported,
    PRouterError,
)
from prouter.transport.stream_io import StreamIO, StreamReset
from prouter.web.admin.requests.context import ApiRequest
from prouter.web.admin.requests.same_origin import refuse_foreign
from prouter.web.prefaces import patience_for, within
from prouter.web.proxy.own_responses.refusals import not_running, obstacle
from prouter.web.proxy.switching import Switch
from prouter.web.proxy.websocket_tunnel import accept

if TYPE_CHECKING:
    from websockets.server import ServerProtocol

    from prouter.web.router_client import RouterClient
    from prouter.web.routes import JobRoute

__all__ = ["JobPorts", "UpgradeRequired"]

_HTTP = "http"
_NUMBER = re.compile(r"[1-9][0-9]{0,4}")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_LARGEST = 65535
_PROTOCOLS = (b"tcp", b"websocket")
_SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
_AGENT_LOST = frozenset({"path_lost", "agent_gone", "overloaded", "unknown_stream"})


class UpgradeRequired(PRouterError):
    """The path speaks other protocols than HTTP (RFC 9110 section 15.5.22)."""

    code = "upgrade_required"
    status = 426
    level = logging.INFO


class JobPorts:
    """The resource ``JOB_PATH/tcp/PORT``."""

    def __init__(self, router: RouterClient) -> None:
        self._router = router

    def on_get(self, req: ApiRequest, resp: falcon.Response, connection: str, job: str, port: str) -> None:
        """Connect the client to a port of the job.

        Raises:
            UpgradeRequired: the request does not ask for an upgrade to ``tcp`` or ``websocket``.
            InvalidRequest: it has a body, or is no handshake of WebSocket.
            Forbidden: it comes from another site's page.
            NotFound: there is no such job, or no process of it listens there (``no_such_port``).
            PRouterError: the job does not run or cannot be reached.
        """
        refuse_foreign(req)
        asked = _protocol(req)
        if asked is None:
            resp.set_header("Upgrade", "tcp, websocket")
            raise UpgradeRequired(
                "this path speaks TCP, not HTTP: send GET with 'Connection: Upgrade' and 'Upgrade: tcp', or open a "
                "WebSocket",
                job=job,
            )
        if req.content_length or req.get_header("Transfer-Encoding") is not None:
            raise InvalidRequest("Invalid request: a request to switch protocols has no body", job=job)
        protocol, response = accept(req.get_header) if asked == b"websocket" else (None, _SWITCHING)
        where = _port(port, job)
        check = obstacle if where == _HTTP else not_running
        route = self._router.usable_route(connection, job, check, time.monotonic() + self._router.config.control.hold)
        self._connect(req, route, where, response, protocol)
        resp.status = 101

    def _connect(
        self, req: ApiRequest, route: JobRoute, port: int | str, response: bytes, protocol: ServerProtocol | None
    ) -> None:
        """Open a stream to the port, and have it take the client's connection over."""
        job = route.record.uid
        io = StreamIO(self._router.open_stream(route.connection, {"kind": "tcp", "job": job, "port": port}))
        switch = Switch(io, job, response, protocol)
        try:
            with within(patience_for(self._router.config), job):
                io.read_preface()
        except StreamReset as error:
            raise _refusal(error, job) from error
        except BaseException:  # also when the client disconnects, which ends the greenlet
            switch.cancel()
            raise
        req.env["prouter.switch"](switch)


def _protocol(req: ApiRequest) -> bytes | None:
    """Return the first protocol that the client offers and this path speaks; None if there is none."""
    offered: bytes = req.env.get("prouter.upgrade", b"") if req.method == "GET" else b""
    names = [name.strip().lower() for name in offered.split(b",")]
    return next((name for name in names if name in _PROTOCOLS), None)


def _port(text: str, job: str) -> int | str:
    """Return the number or name of a port.

    Raises:
        NotFound: it is neither.
    """
    if _NUMBER.fullmatch(text) and int(text) <= _LARGEST:
        return int(text)
    if _NAME.fullmatch(text) is None:
        raise NotFound(
            f"job '{job}' has no such port: send a number from 1 to {_LARGEST}, or '{_HTTP}' for its HTTP server",
            job=job,
            code="no_such_port",
        )
    return text


def _refusal(reset: StreamReset, job: str) -> PRouterError:
    """Return the error for a stream that ended before the connection was there."""
    error = _meaning(reset)
    error.job = job
    return error


def _meaning(reset: StreamReset) -> PRouterError:
    code, text = reset.code, reset.detail
    if code == "no_such_port":
        return NotFound(text, code=code)
    if code == "no_job":
        return NotFound(text)
    if code in ("not_running", "job_ended"):
        return JobEnded(text)
    if code == "connect_timeout":
        return JobTimeout(f"the job does not accept connections: {text}")
    if code == "unknown_kind":
        text = "the job's agent is of an earlier version, which cannot connect to ports of jobs: update the agent"
        return NotSupported(text, code="agent_too_old")
    if code in _AGENT_LOST:
        return AgentUnavailable(f"the connection to the job's agent broke: {text}", retry_after=2)
    return JobUnreachable(f"the connection to the job failed: {text or code}")
