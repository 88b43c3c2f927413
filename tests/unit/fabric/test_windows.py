"""Receive windows that grow, shrink, and are shared."""

from __future__ import annotations

from prouter.fabric.stream import Stream
from tests.support.muxes import End, exchange, linked, opened


def use(opener: End, acceptor: End, near: Stream, far: Stream) -> int:
    """Fill and consume the window; return its size afterwards."""
    near.write(b"x" * near.room)
    exchange(opener, acceptor)
    far.consume(far.unread)
    exchange(opener, acceptor)
    return near.room


def test_a_window_grows_while_its_reader_keeps_up() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor, window=100)
    sizes = [use(opener, acceptor, near, far) for _ in range(20)]
    assert sizes == sorted(sizes)
    assert [(size, sizes.count(size)) for size in sorted(set(sizes))[:4]] == [(100, 1), (200, 2), (400, 2), (800, 2)]
    assert sizes[-1] == 3200
    assert len(acceptor.mux.bulk) == 1
    near.reset("done")
    exchange(opener, acceptor)
    assert len(acceptor.mux.bulk) == 0


def test_fast_streams_share_what_is_in_flight() -> None:
    opener, acceptor = linked()
    bulk = acceptor.mux.bulk
    streams = [opened(opener, acceptor, window=100) for _ in range(9)]
    sizes = []
    for number in range(1, 10):
        for _ in range(20):
            rooms = [use(opener, acceptor, *pair) for pair in streams[:number]]
        sizes.append(rooms)
    shares = [3200, 400, 266, 200, 160, 133, 114, 100, 100]
    assert sizes == [[share] * number for number, share in enumerate(shares, 1)]
    for near, _ in streams[2:]:
        near.reset("done")
    exchange(opener, acceptor)
    for _ in range(6):
        rooms = [use(opener, acceptor, *pair) for pair in streams[:2]]
    assert rooms == [400, 400]
    bulk.tick()
    for _ in range(6):
        use(opener, acceptor, *streams[0])
    bulk.tick()
    assert len(bulk) == 1, "the other one is not used any more"
    for _ in range(6):
        rooms = [use(opener, acceptor, *streams[0])]
    assert rooms == [3200]


def test_fast_streams_of_other_processes_count() -> None:
    opener, acceptor = linked()
    bulk = acceptor.mux.bulk
    told: list[int] = []
    bulk.on_change = told.append
    bulk.elsewhere = 3
    streams = [opened(opener, acceptor, window=100) for _ in range(2)]
    for number in (1, 2):
        for _ in range(20):
            rooms = [use(opener, acceptor, *pair) for pair in streams[:number]]
        assert rooms == [800 // (3 + number)] * number
    bulk.elsewhere = 0
    assert [use(opener, acceptor, *pair) for pair in streams for _ in range(4)][3::4] == [400, 400]
    streams[0][0].close()
    streams[0][1].close()
    exchange(opener, acceptor)
    bulk.tick()
    bulk.tick()
    bulk.tick()
    assert told == [1, 2, 1, 0]


def test_a_window_does_not_grow_where_the_reader_is_slow() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor, window=100)
    for _ in range(20):
        near.write(b"x" * near.room)
        exchange(opener, acceptor)
        far.consume(min(50, far.unread))
        exchange(opener, acceptor)
    assert near.limit == 100, "the reader is behind"
    near, far = opened(opener, acceptor, window=100)
    for _ in range(19):
        near.write(b"x" * 10)
        exchange(opener, acceptor)
        far.consume(10)
        exchange(opener, acceptor)
    assert near.limit == 100, "buffers behind the reader took it"


def test_a_window_grows_little_where_the_path_is_slow() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor, window=100)
    for _ in range(20):
        size = use(opener, acceptor, near, far)
        assert size <= 300, "one window between two ticks"
        acceptor.mux.tick(0.0)
    assert size == 300
    assert len(acceptor.mux.bulk) == 0


def test_a_reader_may_lower_the_window() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor, window=100)
    far.most = 20
    assert [use(opener, acceptor, near, far) for _ in range(4)] == [20] * 4
    far.most = 300
    assert far.most == 300
    assert [use(opener, acceptor, near, far) for _ in range(40)][-1] == 300


def test_data_is_resent_in_smaller_pieces() -> None:
    opener, acceptor = linked()
    near, _ = opened(opener, acceptor, window=1 << 20)
    data = bytes(range(256)) * 4096
    assert near.write(data) == len(data)
    opener.mux.take()
    opener.mux.path_up()
    acceptor.mux.path_up()
    largest = 0
    for _ in range(3):
        frames = opener.mux.take()
        largest = max([largest, *(len(frame.payload) for frame in frames)])
        acceptor.take(acceptor.mux.receive(frames))
        opener.take(opener.mux.receive(acceptor.mux.take()))
    assert acceptor.read[near.sid] == data
    assert largest == 1 << 18


def test_windows_begin_anew_when_a_grant_was_lost() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor, window=100)
    use(opener, acceptor, near, far)
    near.write(b"x" * 100)
    exchange(opener, acceptor)
    far.consume(100)
    acceptor.mux.take()
    opener.mux.path_up()
    acceptor.mux.path_up()
    exchange(opener, acceptor)
    assert near.room == 100
    assert [use(opener, acceptor, near, far) for _ in range(4)] == [200, 200, 400, 400]
