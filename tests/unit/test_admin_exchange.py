"""A client that does not go on with its request body, on a real connection."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any, cast

import gevent

from prouter.api.proxy.admin import AdminService
from prouter.api.proxy.connection import ClientConnection
from prouter.api.proxy.forwarded import Origin
from tests.support.fabric_peers import until


def read_everything(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def test_a_body_that_does_not_come_ends_the_request() -> None:
    service = AdminService(read_everything)
    server = SimpleNamespace(
        loop=gevent.get_hub().loop,
        head_timeout=30.0,
        idle_timeout=0.05,
        max_head=65536,
        draining=False,
        dispatch=service.start,
        forget=lambda connection: None,
    )
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    connection = ClientConnection(cast(Any, server), ours, Origin("unix", 0, False))
    try:
        theirs.sendall(b"POST /jobs/create HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n{")
        until(lambda: connection.exchange is not None)
        until(lambda: connection.exchange is None)
        theirs.setblocking(False)
        answer = theirs.recv(65536)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"the request body took too long" in answer
        assert b"\r\nConnection: close\r\n" in answer
    finally:
        connection.close()
        theirs.close()
