"""Sockets that wait for their handshakes: those worth one are taken in order, the others closed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from prouter.broker.sockets.waiting import Waiting, says_something


class _Line:
    """Sockets that wait, and their clients."""

    def __init__(self, stack: ExitStack) -> None:
        self.waiting: Waiting[str] = Waiting()
        self.clients: list[socket.socket] = []
        self.accepted: list[socket.socket] = []
        self._stack = stack

    def come(self, *, speaking: bool, now: float = 100.0) -> socket.socket:
        ours, theirs = socket.socketpair()
        self.clients.append(self._stack.enter_context(closing(theirs)))
        self.accepted.append(self._stack.enter_context(closing(ours)))
        if speaking:
            theirs.sendall(b"\xff")
        self.waiting.add(ours, str(len(self.accepted) - 1), now)
        return theirs

    def taken(self, most: int, now: float) -> list[str]:
        return [origin for _, origin in self.waiting.take(most, now)]


@pytest.fixture
def line() -> Iterator[_Line]:
    with ExitStack() as stack:
        yield _Line(stack)


def test_they_are_taken_in_their_order_and_not_more_than_wanted(line: _Line) -> None:
    for _ in range(5):
        line.come(speaking=True)
    assert line.taken(2, 100.0) == ["0", "1"]
    assert len(line.waiting) == 3
    assert line.taken(10, 200.0) == ["2", "3", "4"]
    assert not line.waiting


def test_a_client_may_be_silent_for_a_while_and_no_longer(line: _Line) -> None:
    line.come(speaking=False)
    silent = line.come(speaking=False)
    line.come(speaking=True)
    assert line.taken(1, 101.9) == ["0"]
    assert line.taken(2, 102.1) == ["2"]
    assert line.waiting.cut == 1
    assert silent.recv(1000) == b"", "it is closed"


def test_clients_that_left_are_not_taken(line: _Line) -> None:
    line.come(speaking=True).close()
    line.come(speaking=False).close()
    line.come(speaking=True)
    assert line.taken(3, 100.0) == ["2"]
    assert line.waiting.cut == 0
    assert [sock.fileno() < 0 for sock in line.accepted] == [True, True, False]


def test_all_can_be_closed(line: _Line) -> None:
    client = line.come(speaking=False)
    line.waiting.close()
    assert not line.waiting
    assert client.recv(1000) == b""


def test_what_waits_to_be_read_is_seen() -> None:
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        assert not says_something(ours.fileno())
        theirs.send(b"x")
        assert says_something(ours.fileno())
