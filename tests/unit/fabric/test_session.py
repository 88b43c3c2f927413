"""Sessions: handshakes, heartbeats, goodbyes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from prouter.errors import ProtocolError
from prouter.fabric.frames import BYE, HELLO, PING, PONG, REFUSE, VERSION, WELCOME, Frame, pack_body
from prouter.fabric.session import LONGEST_PACE, LOST_AFTER, Greeted, Lost, Refused, Session, SessionState, Welcomed


def pair(now: float = 0.0, heartbeat: float = 1.0) -> tuple[Session, Session]:
    """Return a dialler and a listener that accepted it."""
    dialler, listener = Session(now, heartbeat, {"uid": "d"}), Session(now, heartbeat)
    (hello,) = dialler.start()
    _, event = listener.receive(hello, now)
    assert event == Greeted({"uid": "d", "protocol": VERSION})
    _, event = dialler.receive(listener.welcome({"uid": "l"}), now)
    assert event == Welcomed({"uid": "l"})
    return dialler, listener


def run(sessions: tuple[Session, Session], start: float, end: float) -> tuple[list[Frame], list[Any]]:
    """Let both tick at their deadlines, over a path without delay; return the frames sent and the events."""
    said: list[Frame] = []
    happened: list[Any] = []
    now = start
    while True:
        now = max(now, min(session.deadline() for session in sessions))
        if now > end:
            return said, happened
        for index, session in enumerate(sessions):
            frames, event = session.tick(now)
            happened += [event] if event is not None else []
            for frame in frames:
                said.append(frame)
                for answer in sessions[1 - index].receive(frame, now)[0]:
                    said.append(answer)
                    session.receive(answer, now)


def test_quiet_peers_send_no_more_pings_than_needed() -> None:
    said, happened = run(pair(), 0.0, 10.5)
    assert happened == []
    assert sum(frame.type == PING for frame in said) <= 20
    assert sum(frame.type == PONG for frame in said) == sum(frame.type == PING for frame in said)


def test_a_listener_has_its_dialler_ask_less_often() -> None:
    dialler, listener = pair()
    listener.pace(5.0)
    said, happened = run((dialler, listener), 0.0, 41.5)
    assert happened == []
    assert sum(frame.type == PING for frame in said) == 9
    assert (dialler.heartbeat, listener.heartbeat) == (5.0, 5.0)
    listener.pace(0.0)
    said, happened = run((dialler, listener), 41.5, 66.5)
    assert happened == []
    assert sum(frame.type == PING for frame in said) >= 18
    assert (dialler.heartbeat, listener.heartbeat) == (1.0, 1.0)


def test_a_dialler_that_is_asked_answers_and_keeps_its_heartbeat() -> None:
    dialler, listener = pair()
    listener.pace(5.0)
    assert dialler.receive(listener.ping(0.5), 0.5) == ([Frame(PONG, offset=1)], None)
    assert dialler.heartbeat == 1.0


def test_either_end_of_a_slow_session_is_lost_after_three_of_its_heartbeats() -> None:
    dialler, listener = pair()
    listener.pace(5.0)
    run((dialler, listener), 0.0, 10.0)
    for session in (dialler, listener):
        assert session.tick(20.0)[1] is None
        assert isinstance(session.tick(22.0)[1], Lost)


def test_a_dialler_waits_no_shorter_than_its_own_heartbeat_and_not_for_ever() -> None:
    dialler, _ = pair(heartbeat=2.0)
    for told, kept in ((1, 2.0), (2**64 - 1, LONGEST_PACE), (0, 2.0)):
        dialler.receive(Frame(PONG, ack=told), 0.5)
        assert dialler.heartbeat == kept


def test_no_ping_is_sent_while_frames_arrive() -> None:
    dialler, _ = pair()
    for tenth in range(1, 100):
        dialler.heard(tenth / 10)
        frames, event = dialler.tick(tenth / 10 + 0.05)
        assert event is None
        assert all(frame.type == PONG for frame in frames)


def test_a_side_that_only_listens_gives_signs_of_life() -> None:
    """A peer whose PING is stuck behind what it sends would take it for dead."""
    for listens, sends in (pair(), pair()[::-1]):
        said: list[Frame] = []
        for tenth in range(1, 100):
            now = tenth / 10
            listens.heard(now)
            frames, event = listens.tick(now)
            assert event is None
            for frame in frames:
                said.append(frame)
                assert sends.receive(frame, now) == ([], None)
            assert sends.tick(now)[1] is None, "its own PING never arrives"
        assert [frame.type for frame in said] == [PONG] * 6
        assert sends.latency is None


def test_the_dialler_sends_the_pings() -> None:
    dialler, listener = pair()
    said, _ = run((dialler, listener), 0.0, 30.5)
    assert sum(frame.type == PING for frame in said) == 30
    assert listener.latency is None


def test_a_listener_sends_its_ping_a_little_later() -> None:
    _, listener = pair()
    assert listener.deadline() == 1.5
    assert listener.tick(1.4) == ([], None)
    assert [frame.type for frame in listener.tick(1.5)[0]] == [PING]
    assert isinstance(listener.tick(3.0)[1], Lost)


def test_silence_leads_to_pings_and_then_to_a_loss() -> None:
    dialler, _ = pair()
    assert dialler.tick(0.9) == ([], None)
    assert [frame.type for frame in dialler.tick(1.0)[0]] == [PING]
    assert dialler.deadline() == 2.0
    assert [frame.type for frame in dialler.tick(2.0)[0]] == [PING]
    _, event = dialler.tick(float(LOST_AFTER))
    assert isinstance(event, Lost)
    assert dialler.state is SessionState.LOST
    assert dialler.tick(100.0) == ([], None)
    assert dialler.deadline() == math.inf


def test_the_round_trip_is_measured() -> None:
    dialler, listener = pair()
    ping = dialler.ping(5.0)
    (pong,), _ = listener.receive(ping, 5.1)
    dialler.receive(pong, 5.25)
    assert dialler.latency == pytest.approx(0.25)
    assert dialler.answered == ping.offset
    dialler.receive(pong, 9.0)
    assert dialler.latency == pytest.approx(0.25)


def test_unanswered_pings_take_no_memory() -> None:
    dialler, _ = pair()
    for _ in range(1000):
        dialler.ping(1.0)
    assert len(dialler._pings) <= 2 * LOST_AFTER + 1


def test_a_hello_is_repeated_until_it_is_answered() -> None:
    dialler = Session(0.0, 1.0, {})
    assert [frame.type for frame in dialler.start()] == [HELLO]
    assert dialler.tick(0.5) == ([], None)
    assert dialler.deadline() == 1.0
    assert [frame.type for frame in dialler.tick(1.0)[0]] == [HELLO]
    assert isinstance(dialler.tick(3.0)[1], Lost)


def test_a_dialler_may_have_more_patience_for_its_welcome_and_says_hello_no_more_often() -> None:
    dialler = Session(0.0, 1.0, {}, welcomed_within=30)
    said = [0.0]
    while not isinstance(dialler.tick(due := dialler.deadline())[1], Lost):
        said.append(due)
    assert (said, due) == ([0.0, 10.0, 20.0], 30.0)


def test_a_refusal_is_final() -> None:
    dialler, listener = Session(0.0, 1.0, {}), Session(0.0, 1.0)
    listener.receive(dialler.start()[0], 0.0)
    frames, event = dialler.receive(listener.refuse("bad_token", "no"), 0.0)
    assert (frames, event) == ([], Refused("bad_token", "no"))
    assert dialler.state is listener.state is SessionState.REFUSED
    assert listener.receive(Frame(PING), 0.0) == ([], None)
    assert listener.receive(dialler._hello_frame(), 0.0) == ([], None)


def test_a_goodbye_is_a_loss_with_a_reason() -> None:
    dialler, listener = pair()
    assert listener.receive(dialler.bye("upgrade"), 1.0)[1] == Lost("upgrade")
    assert dialler.state is listener.state is SessionState.LOST


@pytest.mark.parametrize(("kind", "key"), [(BYE, b"reason"), (REFUSE, b"text"), (REFUSE, b"code")])
def test_what_stands_in_place_of_a_text_is_not_shown_and_a_text_only_in_part(kind: int, key: bytes) -> None:
    for value in (b"\x91" * 1000 + b"\xc0", pack_body({"x": "y" * 60_000})[3:]):
        dialler, _ = pair()
        _, event = dialler.receive(Frame(kind, payload=b"\x81" + bytes([0xA0 + len(key)]) + key + value), 1.0)
        assert isinstance(event, (Lost, Refused))
        assert all(len(text) <= 1024 for text in event)


def test_a_dialler_that_is_not_accepted_gets_no_answer() -> None:
    listener = Session(0.0, 1.0)
    for frame in (Frame(PING), Frame(WELCOME, payload=pack_body({})), Frame(BYE, payload=pack_body({}))):
        assert listener.receive(frame, 0.0) == ([], None)
    assert isinstance(listener.tick(3.0)[1], Lost), "it has only so long to introduce itself"


def test_a_listener_that_is_not_greeted_has_nothing_to_do_before_it_gives_up() -> None:
    listener = Session(0.0, 1.0)
    assert listener.start() == []
    assert listener.deadline() == LOST_AFTER
    listener.heard(2.0)
    assert listener.deadline() == 2.0 + LOST_AFTER


@pytest.mark.parametrize("kind", [WELCOME, REFUSE])
def test_malformed_answers_are_protocol_errors(kind: int) -> None:
    with pytest.raises(ProtocolError):
        Session(0.0, 1.0, {}).receive(Frame(kind, payload=b"\xc1"), 0.0)


def test_a_malformed_hello_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        Session(0.0, 1.0).receive(Frame(HELLO, payload=b"\xc1"), 0.0)


def test_silence_counts_only_while_this_end_listened() -> None:
    session = Session(0.0, 1.0, {"kind": "agent"})
    session.receive(Frame(WELCOME, payload=pack_body({})), 0.0)
    session.excuse(10.0, 10.5)
    assert session.tick(10.5)[1] is None, "half a second of silence"
    frames, lost = session.tick(13.0)
    assert isinstance(lost, Lost)
    assert not frames


def test_an_excuse_does_not_reach_into_the_future() -> None:
    session = Session(0.0, 1.0, {"kind": "agent"})
    session.receive(Frame(WELCOME, payload=pack_body({})), 0.0)
    session.excuse(100.0, 1.0)
    assert isinstance(session.tick(4.0)[1], Lost)
