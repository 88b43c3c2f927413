"""`StreamIO`: blocking reads, writes and prefaces over a pair of real muxes."""

from __future__ import annotations

import os
from typing import Any

import gevent
import pytest

from prouter.errors import NotFound, ProtocolError
from prouter.fabric.mux import DEFAULT_WINDOW
from prouter.transport.stream_io import StreamIO, StreamReset
from tests.support.loopback import Loopback, wait_for


class Pair:
    """Both ends of one stream: a worker's `left` and an agent's `right`."""

    def __init__(self) -> None:
        accepted: list[StreamIO] = []
        self.loopback = Loopback(lambda stream, target: accepted.append(StreamIO(stream)))
        self.left = StreamIO(self.loopback.open({"kind": "test"}))
        wait_for(lambda: accepted)
        self.right = accepted[0]


@pytest.fixture
def pair() -> Any:
    with gevent.Timeout(10):
        yield Pair()


def test_bytes_arrive_whole_and_then_the_end(pair: Pair) -> None:
    data = os.urandom(5_000_000)

    def write() -> None:
        pair.left.write_all(data)
        pair.left.close()

    writer = gevent.spawn(write)
    parts = list(iter(pair.right.read, b""))
    assert b"".join(parts) == data
    assert pair.right.finished
    writer.get()


def test_a_read_takes_no_more_than_asked(pair: Pair) -> None:
    pair.left.write_all(b"abcdef")
    assert pair.right.read(2) == b"ab"
    assert pair.right.buffered == 4
    assert pair.right.read_exactly(4) == b"cdef"


def test_read_buffered_returns_everything_that_has_arrived(pair: Pair) -> None:
    pair.left.write_all(b"ab")
    pair.left.write_all(b"cd")
    pair.left.close()
    wait_for(lambda: pair.right.finished)
    assert pair.right.read_buffered() == [b"ab", b"cd"]
    assert pair.right.read_buffered() == []


def test_a_writer_waits_for_the_reader_within_the_window(pair: Pair) -> None:
    data = bytes(3 * 1024 * 1024)
    writer = gevent.spawn(pair.left.write_all, data)
    wait_for(lambda: pair.right.buffered == DEFAULT_WINDOW)
    gevent.idle()
    assert not writer.ready()
    assert pair.right.buffered == DEFAULT_WINDOW
    assert pair.right.read_exactly(len(data)) == data
    writer.get()


def test_prefaces_carry_maps_and_bytes_follow(pair: Pair) -> None:
    pair.right.write_preface({"ok": True, "size": 3})
    pair.right.write_all(b"xyz")
    assert pair.left.read_preface() == {"ok": True, "size": 3}
    assert pair.left.read() == b"xyz"


def test_a_preface_with_an_error_raises_it(pair: Pair) -> None:
    pair.right.write_preface({"error": NotFound("no such file", job="j1").to_wire()})
    with pytest.raises(NotFound, match="no such file") as caught:
        pair.left.read_preface()
    assert caught.value.job == "j1"


def test_a_cut_preface_is_a_protocol_error(pair: Pair) -> None:
    pair.right.write_all(b"\x10\x00\x00\x00half")
    pair.right.close()
    with pytest.raises(ProtocolError, match="12 bytes early"):
        pair.left.read_preface()


@pytest.mark.parametrize("raw", [b"\xff\xff\xff\xff", b"\x01\x00\x00\x00\xc1", b"\x01\x00\x00\x00\x80"])
def test_a_bad_preface_is_a_protocol_error(pair: Pair, raw: bytes) -> None:
    pair.right.write_all(raw)
    with pytest.raises(ProtocolError):
        pair.left.read_preface()


def test_a_reset_wakes_the_reader_with_code_and_text(pair: Pair) -> None:
    reader = gevent.spawn(pair.left.read)
    gevent.idle()
    pair.right.reset("no_job", "job 'x' is not found")
    with pytest.raises(StreamReset, match="not found") as caught:
        reader.get()
    assert caught.value.code == "no_job"
    with pytest.raises(StreamReset):
        pair.left.write_all(b"more")
    with pytest.raises(StreamReset):
        pair.right.read()


def test_a_reset_wakes_a_blocked_writer(pair: Pair) -> None:
    writer = gevent.spawn(pair.left.write_all, bytes(2 * 1024 * 1024))
    wait_for(lambda: pair.right.buffered == DEFAULT_WINDOW)
    pair.right.reset("aborted", "enough")
    with pytest.raises(StreamReset, match="enough"):
        writer.get()


def test_wait_closed_returns_only_after_the_last_byte_was_read(pair: Pair) -> None:
    pair.left.close()
    pair.right.write_all(b"last")
    pair.right.close()
    waiter = gevent.spawn(pair.right.wait_closed)
    wait_for(lambda: pair.left.finished)
    gevent.idle()
    assert not waiter.ready()
    assert pair.left.read() == b"last"
    waiter.get()
    assert pair.left.read() == b""


def test_wait_closed_raises_when_the_reader_resets(pair: Pair) -> None:
    pair.right.write_all(b"last")
    pair.right.close()
    waiter = gevent.spawn(pair.right.wait_closed)
    gevent.idle()
    pair.left.reset("client_gone", "")
    with pytest.raises(StreamReset) as caught:
        waiter.get()
    assert caught.value.code == "client_gone"
