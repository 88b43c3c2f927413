"""One end of a stream as its application sees it: room, counts, and the order of its end."""

from __future__ import annotations

import pytest

from prouter.fabric.frames import ACK, DATA, FIN, Frame
from prouter.fabric.stream import MAX_PIECE, Direction
from prouter.fabric.windows import PLAIN
from tests.support.muxes import End, exchange, linked, opened


def test_room_is_the_window_minus_what_is_in_flight() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor, window=100)
    assert near.room == 100
    near.write(b"x" * 30)
    assert near.room == 70
    exchange(opener, acceptor)
    far.consume(30)
    exchange(opener, acceptor)
    assert near.room == 100


def test_a_side_that_is_closed_or_reset_has_no_room() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor)
    near.close()
    far.reset("enough")
    assert near.room == far.room == 0
    with pytest.raises(ValueError, match="closed"):
        far.write(b"x")
    far.close()
    assert far.sending is Direction.OPEN, "a reset stream has no end of its own"


def test_a_writer_that_asked_for_room_is_told_when_there_is_some() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor, window=10)
    assert near.ask_room() == 10
    near.write(b"x" * 10)
    assert near.ask_room() == 0
    opener.blocked.add(near.sid)
    exchange(opener, acceptor)
    far.consume(10)
    exchange(opener, acceptor)
    assert not opener.blocked
    near.close()
    assert near.ask_room() == 0, "there will never be any"


def test_a_window_that_shrank_below_what_is_in_flight_takes_nothing() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor, window=10)
    far.write(b"x")
    exchange(opener, acceptor)
    near.limit = 20
    near.write(b"x" * 20)
    opener.mux.path_up()
    assert near.limit == 10
    assert near.room == -10
    assert near.write(b"x") == 0
    assert near.ask_room() == -10


def test_pieces_are_half_a_window_and_large_for_fast_streams_only() -> None:
    opener, acceptor = linked()
    near, _ = opened(opener, acceptor, window=100)
    assert near.piece == 50
    large, _ = opened(opener, acceptor, window=MAX_PIECE)
    assert large.piece == 256 * 1024
    large.limit = PLAIN * MAX_PIECE + 1
    assert large.piece == MAX_PIECE


def test_what_was_written_and_what_the_peer_used_are_counted() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor, window=100)
    assert near.pristine
    assert near.write(b"") == 0
    near.write(b"0123456789")
    near.write(b"abcde")
    assert near.written == 15
    delivered = [near.delivered]
    exchange(opener, acceptor)
    assert not far.pristine
    assert far.unread == 15
    far.consume(12)
    acceptor.mux.tick(0.0)
    exchange(opener, acceptor)
    assert near.acknowledged == 12
    assert near.since(12) == b"cde"
    assert near.since(14) == b"e"
    assert near.since(15) == b""
    near.close()
    assert near.written == 15, "the end is no byte"
    exchange(opener, acceptor)
    far.consume(3)
    exchange(opener, acceptor)
    assert near.acknowledged == near.sent == 16
    assert [*delivered, near.delivered] == [False, True]
    assert near.sending is Direction.DONE


def test_bytes_of_a_reset_stream_may_still_be_consumed() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor)
    near.write(b"x" * 90)
    exchange(opener, acceptor)
    near.reset("enough")
    exchange(opener, acceptor)
    far.consume(90)
    assert acceptor.mux.take() == []
    assert len(acceptor.mux.bulk) == 0


def test_no_more_is_consumed_than_was_delivered_after_the_end_either() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor)
    near.write(b"12")
    near.close()
    exchange(opener, acceptor)
    with pytest.raises(ValueError, match="more than was received"):
        far.consume(3)
    far.consume(1)
    states = [far.receiving]
    far.consume(1)
    assert [*states, far.receiving] == [Direction.FIN, Direction.DONE]


def test_an_end_that_the_application_completes_is_no_event() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor)
    far.close()
    near.write(b"12")
    near.close()
    exchange(opener, acceptor)
    closed = [far.closed]
    far.consume(2)
    assert [*closed, far.closed] == [False, True]
    assert not acceptor.mux.streams
    assert far.sid not in acceptor.closed
    exchange(opener, acceptor)
    assert near.sid in opener.closed


def test_a_finished_direction_is_acknowledged_without_an_event_for_writers() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor, window=10)
    near.write(b"x" * 11)
    near.close()
    exchange(opener, acceptor)
    far.consume(5)
    assert opener.mux.receive(acceptor.mux.take()) == [], "nobody writes any more"
    far.consume(5)
    exchange(opener, acceptor)
    assert near.sending is Direction.DONE


@pytest.mark.parametrize("frame", [Frame(DATA, 0, 1, 1, 0, b"more"), Frame(DATA, FIN, 1, 1), Frame(DATA, 0, 1, 1)])
def test_a_peer_that_writes_after_its_end_loses_the_stream(frame: Frame) -> None:
    opener, acceptor = linked()
    near, _ = opened(opener, acceptor)
    near.close()
    exchange(opener, acceptor)
    acceptor.take(acceptor.mux.receive([frame]))
    assert acceptor.resets == {near.sid: "protocol_error"}


def test_an_end_that_comes_again_with_its_bytes_is_no_new_end() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor)
    near.write(b"12")
    near.close()
    exchange(opener, acceptor)
    acceptor.take(acceptor.mux.receive([Frame(DATA, FIN, near.sid, 0, 0, b"12"), Frame(DATA, FIN, near.sid, 2)]))
    assert acceptor.read[near.sid] == b"12"
    assert far.unread == 2
    assert acceptor.resets == {}


def test_an_end_before_bytes_that_arrived_ends_nothing() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor)
    near.write(b"12345")
    exchange(opener, acceptor)
    acceptor.take(acceptor.mux.receive([Frame(DATA, FIN, near.sid, 2)]))
    assert far.receiving is Direction.OPEN
    assert near.sid not in acceptor.finished
    near.write(b"67")
    exchange(opener, acceptor)
    assert acceptor.read[near.sid] == b"1234567"


def test_an_acknowledgement_of_bytes_that_were_never_written_is_not_believed() -> None:
    opener, acceptor = linked()
    near, _ = opened(opener, acceptor)
    near.write(b"12")
    opener.mux.receive([Frame(ACK, 0, near.sid, 100, 3)])
    assert near.acknowledged == 0
    assert near.since(0) == b"12"


def test_a_tick_does_not_repeat_acknowledgements_that_data_carried() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor)
    other, gone = opened(opener, acceptor)
    near.write(b"x")
    other.write(b"x")
    exchange(opener, acceptor)
    far.consume(1)
    far.write(b"y")
    gone.consume(1)
    gone.reset("enough")
    exchange(opener, acceptor)
    acceptor.mux.tick(0.0)
    assert acceptor.mux.take() == []


def test_a_path_that_is_reported_lost_twice_keeps_its_timeout() -> None:
    opener, acceptor = linked(resume_timeout=10.0)
    near, _ = opened(opener, acceptor)
    opener.mux.path_down(100.0)
    opener.mux.path_down(105.0)
    assert opener.mux.tick(109.0) == []
    opener.take(opener.mux.tick(110.0))
    assert near.reset_code == "path_lost"


def test_a_mux_that_never_had_a_path_gives_its_streams_up_in_time() -> None:
    opener = End(accepts=False, resume_timeout=10.0)
    opener.mux.path_down(100.0)
    opener.mux.path_down(105.0)
    near = opener.mux.open({})
    assert opener.mux.tick(109.0) == []
    (event,) = opener.mux.tick(110.0)
    assert event.stream is near
