"""Resumption, one rule at a time; `test_streams` and `test_schedules` try them all together."""

from __future__ import annotations

import pytest

from prouter.fabric import strays
from prouter.fabric.frames import ACK, ASK, DATA, OPEN, RESET, RESUME, Frame
from prouter.fabric.windows import GROWTH
from tests.support.muxes import End, exchange, linked, opened


def kinds(end: End) -> list[tuple[int, int]]:
    """Type and stream of the frames that an end sends now."""
    return [(frame.type, frame.sid) for frame in end.mux.take()]


def test_a_gap_is_answered_once_until_it_is_filled() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor)
    acceptor.mux.receive([Frame(DATA, 0, near.sid, offset, 0, b"late") for offset in (4, 8, 12)])
    (answer,) = acceptor.mux.take()
    assert (answer.type, answer.flags, answer.offset) == (RESUME, 0, 0)
    acceptor.take(acceptor.mux.receive([Frame(DATA, 0, near.sid, 0, 0, b"here")]))
    acceptor.mux.receive([Frame(DATA, 0, near.sid, 8, 0, b"late")])
    (answer,) = acceptor.mux.take()
    assert answer.offset == 4, "that is another gap"
    assert acceptor.read[near.sid] == b"here"
    assert far.unread == 4


@pytest.mark.parametrize("both", [True, False], ids=["both ends resume", "one end resumes"])
def test_gaps_are_filled_after_a_resumption_as_before_it(both: bool) -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor, window=10_000)
    opener.write(near, b"a" * 2000)
    exchange(opener, acceptor)
    for end in (opener, acceptor) if both else (opener,):
        end.mux.path_up()
    exchange(opener, acceptor)
    for letter in (b"b", b"c", b"d", b"e", b"f"):
        opener.write(near, letter * 1000)
        if letter in b"ce":
            opener.mux.take()  # These frames are lost.
        exchange(opener, acceptor)
        far.consume(far.unread)
    assert acceptor.read[near.sid] == opener.written[near.sid]


def test_what_both_ends_ask_for_at_the_same_time_is_resent_once() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor)
    acceptor.write(far, b"confirms the stream")
    exchange(opener, acceptor)
    opener.write(near, b"kept")
    opener.mux.take()
    for end in (opener, acceptor):
        end.mux.path_up()
    passed = exchange(opener, acceptor)
    assert [frame.payload for frame in passed if frame.type == DATA] == [b"kept"]
    assert acceptor.read[near.sid] == b"kept"


def test_a_peer_that_answers_and_does_not_ask_is_resent_what_it_lacks() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor)
    acceptor.write(far, b"confirms the stream")
    exchange(opener, acceptor)
    opener.write(near, b"lost")
    opener.mux.take()
    opener.mux.path_up()
    assert (RESUME, near.sid) in kinds(opener)
    opener.mux.receive([Frame(RESUME, 0, near.sid, 0, 0)])
    assert [frame.payload for frame in opener.mux.take()] == [b"lost"]


def test_bytes_after_a_gap_arrive_once_the_lost_ones_were_resent() -> None:
    opener, acceptor = linked()
    near, _ = opened(opener, acceptor)
    opener.write(near, b"lost")
    opener.mux.take()
    opener.write(near, b"kept")
    exchange(opener, acceptor)
    assert acceptor.read[near.sid] == b"lostkept"


def test_a_part_of_a_piece_is_resent_from_where_the_peer_stopped() -> None:
    opener, _ = linked()
    near = opener.know(opener.mux.open({}, 100))
    opener.write(near, b"0123456789")
    opener.mux.take()
    opener.mux.receive([Frame(RESUME, 0, near.sid, 4, 4)])
    assert opener.mux.take() == [Frame(DATA, 0, near.sid, 4, 0, b"456789")]


def test_bytes_that_overlap_those_received_are_cut_to_the_new_ones() -> None:
    opener, acceptor = linked()
    near, _ = opened(opener, acceptor)
    acceptor.take(acceptor.mux.receive([Frame(DATA, 0, near.sid, 0, 0, b"0123")]))
    acceptor.take(acceptor.mux.receive([Frame(DATA, 0, near.sid, 2, 0, b"2345")]))
    acceptor.take(acceptor.mux.receive([Frame(DATA, 0, near.sid, 1, 0, b"12")]))
    assert acceptor.read[near.sid] == b"012345"


def test_questions_that_come_together_are_answered_together() -> None:
    opener, acceptor = linked()
    near, _ = opened(opener, acceptor)
    acceptor.mux.receive([Frame(RESUME, ASK, near.sid, 0, 0)] * 3)
    assert kinds(acceptor) == [(RESUME, near.sid)]
    acceptor.mux.receive([Frame(RESUME, ASK, near.sid, 0, 0)])
    assert kinds(acceptor) == [(RESUME, near.sid)]


def test_a_resume_lets_a_writer_go_on() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor, window=10)
    opener.write(near, b"x" * 11)
    assert opener.blocked
    exchange(opener, acceptor)
    far.consume(10)
    acceptor.mux.take()
    opener.take(opener.mux.receive([Frame(RESUME, 0, near.sid, 10, 10)]))
    assert not opener.blocked


def test_data_lets_a_writer_go_on_by_what_it_acknowledges() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor, window=100)
    opener.write(near, b"x" * 101)
    exchange(opener, acceptor)
    far.consume(1)
    acceptor.write(far, b"answer")
    opener.take(opener.mux.receive([frame for frame in acceptor.mux.take() if frame.type == DATA]))
    assert not opener.blocked
    assert near.room == 1


def test_an_opener_does_not_answer_an_open() -> None:
    opener, acceptor = linked()
    near, _ = opened(opener, acceptor)
    opener.mux.strays = 0
    opener.mux.receive([Frame(OPEN, 0, near.sid, 100, 0, b"\x80")])
    assert kinds(opener) == []
    assert opener.mux.strays == 1


def test_an_opener_answers_unknown_streams_and_remembers_none_of_them() -> None:
    opener, _ = linked()
    opener.mux.receive([Frame(DATA, 0, 77, 0, 0, b"x")] * 2)
    frames = opener.mux.take()
    assert [(frame.type, frame.sid) for frame in frames] == [(RESET, 77)] * 2


def test_a_peer_that_wasted_too_much_is_not_resent_anything() -> None:
    opener, acceptor = linked()
    near, _ = opened(opener, acceptor)
    opener.write(near, b"x" * 50)
    opener.mux.take()
    opener.mux.strays = strays._TOO_MANY + 1
    opener.mux.receive([Frame(RESUME), Frame(RESUME, ASK, near.sid, 0, 0)])
    assert kinds(opener) == []
    opener.mux.strays = 0
    opener.mux.receive([Frame(RESUME, ASK, near.sid, 0, 0)])
    assert kinds(opener) == [(RESUME, near.sid), (DATA, near.sid)]


def test_bytes_that_come_again_are_strays_beyond_what_may_be_in_flight() -> None:
    opener, acceptor = linked()
    near, _ = opened(opener, acceptor, window=100)
    again = Frame(DATA, 0, near.sid, 0, 0, b"x" * 100)
    acceptor.mux.strays = 0
    acceptor.take(acceptor.mux.receive([again]))
    acceptor.mux.receive([again] * (2 * GROWTH))
    assert acceptor.mux.strays == 0
    acceptor.mux.receive([again])
    assert acceptor.mux.strays == 1


def test_an_acknowledgement_that_tells_nothing_new_is_a_stray() -> None:
    opener, acceptor = linked()
    near, _ = opened(opener, acceptor)
    opener.mux.strays = 0
    opener.mux.receive([Frame(ACK, 0, near.sid, 100, 0)])
    assert opener.mux.strays == 1
    assert near.limit == 100


def test_bytes_for_a_stream_that_has_ended_count_once_each_frame_while_they_may_be_late() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor)
    far.reset("job_ended")
    acceptor.mux.strays = 0
    late = Frame(DATA, 0, near.sid, 0, 0, b"x" * 8192)
    acceptor.mux.receive([late])
    assert acceptor.mux.strays == 1
    acceptor.mux.receive([late._replace(payload=bytes(8 << 20))])
    assert acceptor.mux.strays == 1 + 1 + (8 << 20) // 4096
