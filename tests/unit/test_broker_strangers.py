"""Connections whose peers are not accepted are ended, on real sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from prouter.broker.strangers import Strangers


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as theirs:
        ours, _address = server.accept()
        with ours:
            theirs.settimeout(0)
            yield ours, theirs


def test_who_is_not_accepted_in_time_has_to_go(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    strangers = Strangers()
    strangers.opened(ours.fileno(), 100.0)
    strangers.sweep(109.0)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)
    strangers.sweep(111.0)
    theirs.settimeout(5)
    assert theirs.recv(1) == b""
    assert (strangers.cut, len(strangers)) == (1, 0)
    assert ours.fileno() >= 0, "it is not ours to close"


def test_who_is_accepted_stays(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    strangers = Strangers()
    strangers.opened(ours.fileno(), 100.0)
    strangers.gone(ours.fileno())
    assert not strangers.due(200.0)
    strangers.sweep(200.0)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)


def test_the_oldest_of_too_many_go_before_their_time() -> None:
    strangers = Strangers()
    for fd in range(1_000_000, 1_004_146):  # no such descriptors: that is no error
        strangers.opened(fd, 100.0)
    assert strangers.due(100.0)
    strangers.sweep(100.0)
    assert (strangers.cut, len(strangers)) == (50, 4096)
