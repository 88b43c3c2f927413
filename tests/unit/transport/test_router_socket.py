"""A ROUTER on gevent's loop whose clients are too many."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from prouter.transport.connection import Connection
from prouter.transport.dealer import DealerSocket
from prouter.transport.router_socket import _MOST_UNAUTHENTICATED, RouterSocket
from tests.support.fabric_peers import until


def is_closed(peer: socket.socket) -> bool:
    """Whether the other end has closed the connection; its greeting is read."""
    try:
        while peer.recv(4096):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return True


def test_unauthenticated_connections_beyond_the_bound_are_closed_and_those_that_speak_are_not() -> None:
    heard: list[list[bytes]] = []
    ends: list[str] = []

    def on_message(connection: Connection, parts: list[bytes]) -> None:
        heard.append([bytes(part) for part in parts])

    server = RouterSocket("127.0.0.1", 0, on_message, lambda connection: None)
    with ExitStack() as stack:
        stack.callback(server.close)
        host, _, port = server.endpoint.removeprefix("tcp://").rpartition(":")
        speaker = DealerSocket(server.endpoint, lambda parts: None, ends.append, b"speaker")
        stack.callback(speaker.close)
        peers: list[socket.socket] = []

        def dial(count: int) -> None:
            for _ in range(count):
                peer = stack.enter_context(socket.create_connection((host, int(port)), 10))
                peer.setblocking(False)
                peers.append(peer)
                if len(peers) % 50 == 0:
                    until(lambda: len(server._unauthenticated) >= min(_MOST_UNAUTHENTICATED, len(peers)))

        dial(200)
        speaker.send([b"", b"hello"])
        until(lambda: heard == [[b"", b"hello"]])
        dial(150)
        until(lambda: sum(map(is_closed, peers)) >= len(peers) + 1 - _MOST_UNAUTHENTICATED, 1.5, "the excess is closed")
        assert len(server._unauthenticated) <= _MOST_UNAUTHENTICATED
        assert all(map(is_closed, peers[:90])), "who has been silent for longest"
        speaker.send([b"", b"again"])
        until(lambda: heard[1:] == [[b"", b"again"]])
        assert not ends
