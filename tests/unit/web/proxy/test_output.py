"""Bytes to a client count as consumed when the kernel has them, and not before."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any, cast

import gevent
import pytest

from prouter.web.proxy.output import ClientOutput
from tests.support.fabric_peers import until

LARGE = bytes(4 * 1024 * 1024)
"""More than the kernel takes for a client that does not read."""


class Consumed:
    """A stream that only counts what was consumed."""

    def __init__(self) -> None:
        self.size = 0

    def consume(self, size: int) -> None:
        self.size += size


class Ends:
    """The output under test and its client."""

    def __init__(self) -> None:
        ours, self.client = socket.socketpair()
        ours.setblocking(False)
        self.client.setblocking(False)
        self.socket = ours
        self.output = ClientOutput(gevent.get_hub().loop, cast(Any, ours), self._flush)
        self.stream = Consumed()

    def _flush(self) -> None:
        self.output.flush()

    def write(self, data: bytes, size: int) -> bool:
        return self.output.write(data, cast(Any, self.stream), size)

    def read(self) -> int:
        """How many bytes the client gets until nothing more is queued."""
        got = 0

        def empty() -> bool:
            nonlocal got
            try:
                got += len(self.client.recv(1 << 20))
            except BlockingIOError:
                return self.output.empty
            return False

        until(empty)
        return got


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.output.close()
    ends.socket.close()
    ends.client.close()


def test_what_the_kernel_takes_at_once_is_consumed_at_once(ends: Ends) -> None:
    assert not ends.write(b"ab", 5)
    assert (ends.stream.size, ends.output.size, ends.output.empty) == (5, 0, True)
    assert ends.client.recv(9) == b"ab"


def test_what_waits_for_the_kernel_is_consumed_in_order_as_the_client_reads(ends: Ends) -> None:
    assert ends.write(LARGE, 7)
    assert not ends.write(b"end", 3)
    assert ends.stream.size == 0
    assert ends.output.size > 3
    assert ends.read() == len(LARGE) + 3
    assert (ends.stream.size, ends.output.size) == (10, 0)
    assert ends.output.undelivered() == 0


def test_closing_consumes_what_was_queued_so_that_no_window_stays_shut(ends: Ends) -> None:
    ends.write(LARGE, 7)
    ends.write(b"end", 3)
    ends.output.close()
    assert (ends.stream.size, ends.output.size, ends.output.empty) == (10, 0, True)


def test_a_broken_connection_is_told_by_the_write_or_the_flush(ends: Ends) -> None:
    ends.write(LARGE, 7)
    ends.client.close()
    with pytest.raises(OSError):
        ends.output.flush()
    ends.output.close()
    with pytest.raises(OSError):
        ends.output.write(b"x", None, 0)


def test_a_connection_can_end_with_a_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        ours, _address = listener.accept()
    output = ClientOutput(gevent.get_hub().loop, cast(Any, ours), lambda: None)
    output.reset_on_close()
    output.close()
    ours.close()
    with client, pytest.raises(ConnectionResetError):
        client.recv(1)
