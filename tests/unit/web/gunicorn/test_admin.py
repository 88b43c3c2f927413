"""A client that stops sending its request body, on a real connection."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import gevent

from prouter.web.gunicorn.admin import AdminService
from prouter.web.proxy.addresses.forwarded import Forwarded, Origin
from prouter.web.proxy.connection import ClientConnection
from tests.support.fabric_peers import until


def read_everything(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


@contextmanager
def connected(
    app: Any, *, body_timeout: float = 0.05, upload_timeout: float = 0.0
) -> Iterator[tuple[ClientConnection, socket.socket]]:
    """A connection served by `app`, and its client's end."""
    service = AdminService(app)
    server = SimpleNamespace(
        loop=gevent.get_hub().loop,
        head_timeout=30.0,
        idle_timeout=0.05,
        body_timeout=body_timeout,
        upload_timeout=upload_timeout,
        max_head=65536,
        draining=False,
        mark=b"5f0e",
        dispatch=lambda connection, head, _looped: service.start(connection, Forwarded(head, connection.origin)),
        forget=lambda connection: None,
    )
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    connection = ClientConnection(cast(Any, server), ours, Origin("unix", 0, False))
    try:
        yield connection, theirs
    finally:
        connection.close()
        theirs.close()


def test_a_body_that_does_not_come_ends_the_request() -> None:
    with connected(read_everything) as (connection, theirs):
        theirs.sendall(b"POST /jobs/create HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
        until(lambda: connection.exchange is not None)
        until(lambda: connection.exchange is None)
        theirs.setblocking(False)
        answer = theirs.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"the request body took too long" in answer
        assert b"\r\nConnection: close\r\n" in answer


def test_a_body_that_trickles_has_no_more_time() -> None:
    with connected(read_everything, body_timeout=0.3) as (connection, theirs):
        theirs.sendall(b"POST /jobs/create HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
        until(lambda: connection.exchange is not None)

        def trickles() -> bool:
            if connection.exchange is not None:
                theirs.sendall(b"x")
            return connection.exchange is None

        until(trickles)
        theirs.setblocking(False)
        assert theirs.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_an_upload_has_time_as_long_as_something_comes() -> None:
    def upload(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["prouter.upload"]()
        return read_everything(environ, start_response)

    with connected(upload, body_timeout=0.01, upload_timeout=5) as (connection, theirs):
        theirs.sendall(b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30\r\n\r\n")
        until(lambda: connection.exchange is not None)
        for _ in range(30):
            gevent.sleep(0.002)
            theirs.sendall(b"x")
        until(lambda: connection.exchange is None)
        theirs.setblocking(False)
        assert theirs.recv(65536).startswith(b"HTTP/1.1 200 ")
    with connected(upload, body_timeout=0.01, upload_timeout=0.05) as (connection, theirs):
        theirs.sendall(b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30\r\n\r\nx")
        until(lambda: connection.exchange is not None)
        until(lambda: connection.exchange is None)
        theirs.setblocking(False)
        assert theirs.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_an_answer_that_goes_on_for_long_keeps_little_for_a_client_that_does_not_read() -> None:
    given = 0

    def flow(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        nonlocal given
        environ["prouter.write_ahead"](65536)
        start_response("200 OK", [])
        while True:
            given += 4096
            yield bytes(4096)

    with connected(flow) as (connection, theirs):
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        theirs.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: connection.out_size > 65536)
        before = given
        gevent.sleep()
        assert given == before, "it waits for the client"
        assert connection.out_size < 65536 + 8192
