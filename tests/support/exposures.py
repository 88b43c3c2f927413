"""Exposures of jobs, their servers and sockets, for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent

from prouter.agent.expose.exposure import Exposed, Exposure, Plan, resolve
from prouter.requests import StartRequest, validated
from prouter.runners.sockets import Listener, Sockets

__all__ = ["BASE", "NOBODY", "Application", "answering", "assigned", "foreign", "own", "plan", "port_of", "waited"]

BASE = "/jobs/c/j/http/"
NOBODY = Sockets([], [], [])


def plan(**body: Any) -> Plan:
    """The plan of a request with this body."""
    return resolve(validated(StartRequest, {"args": ["x"], "env": {}, **body}))


def assigned(exposure: Exposure) -> int:
    """The port that was assigned."""
    assert exposure.port is not None
    return exposure.port.number


Application = Callable[[dict[str, Any], Callable[..., Any]], list[bytes]]


def answering(statuses: dict[str, str], default: str = "404 Not Found") -> Application:
    """A server that answers these paths with these statuses."""

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response(statuses.get(environ["PATH_INFO"], default), [("Content-Length", "0")])
        return []

    return application


def port_of(server: Any) -> int:
    """The port of a server."""
    return int(server.server_port)


def own(*ports: int) -> Sockets:
    """A job that listens on these ports of 127.0.0.1."""
    return Sockets([Listener("ipv4", "127.0.0.1", port, 1) for port in ports], [], [])


def foreign(*ports: int) -> Sockets:
    """Another program that does."""
    return Sockets([], [one._replace(pid=0) for one in own(*ports).own], [])


def waited(exposure: Exposure, look: Sockets = NOBODY, timeout: float = 5.0) -> Exposed:
    """Wait for a job's server, whose sockets are as in `look`."""
    if look is NOBODY and exposure.port is not None:
        number = exposure.port.number
        look = Sockets([Listener("ipv4", "127.0.0.1", number, 1), Listener("ipv6", "::1", number, 1)], [], [])
    with gevent.Timeout(timeout + 5):
        return exposure.wait(lambda: look, timeout)
