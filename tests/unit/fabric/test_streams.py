"""Streams against an adversary that loses, repeats and delays messages: every byte is accounted for."""

from __future__ import annotations

from collections import deque
from itertools import count

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from prouter.fabric.frames import ACK, ASK, DATA, FIN, OPEN, RESET, RESUME, Frame, decode, encode, pack_body
from prouter.fabric.mux import RESUME_TIMEOUT
from prouter.fabric.stream import Direction, Stream
from prouter.fabric.windows import GROWTH, PLAIN
from tests.support.muxes import End, exchange, linked, opened

OPENER, ACCEPTOR = 0, 1


def pattern(sid: int, start: int, size: int) -> bytes:
    return bytes((sid * 31 + start + i) % 251 for i in range(size))


class Streams(RuleBasedStateMachine):
    """Two ends and a path that loses, repeats and delays messages. Of a loss only the ends in `noticed` are told."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = [End(accepts=False), End(accepts=True)]
        self.flight: list[deque[list[bytes]]] = [deque(), deque()]
        self.limbo: list[list[list[bytes]]] = [[], []]
        self.cut = False
        self.noticed: set[int] = set()

    @initialize()
    def link(self) -> None:
        for end in self.ends:
            end.mux.path_up()

    # -- the applications

    @rule(window=st.integers(1, 40))
    def open(self, window: int) -> None:
        end = self.ends[OPENER]
        end.know(end.mux.open({"kind": "test"}, window))

    @rule(side=st.sampled_from([0, 1]), pick=st.integers(0), size=st.integers(1, 60))
    def write(self, side: int, pick: int, size: int) -> None:
        end, stream = self.pick(side, pick)
        if stream is not None and stream.sending is Direction.OPEN and stream.reset_code is None:
            end.write(stream, pattern(stream.sid, len(end.written[stream.sid]), size))

    @rule(side=st.sampled_from([0, 1]), pick=st.integers(0), size=st.integers(1, 60))
    def consume(self, side: int, pick: int, size: int) -> None:
        _, stream = self.pick(side, pick)
        if stream is not None:
            stream.consume(min(size, stream.unread))

    @rule(side=st.sampled_from([0, 1]), pick=st.integers(0))
    def close(self, side: int, pick: int) -> None:
        _, stream = self.pick(side, pick)
        if stream is not None:
            stream.close()

    @rule(side=st.sampled_from([0, 1]), pick=st.integers(0))
    def reset(self, side: int, pick: int) -> None:
        _, stream = self.pick(side, pick)
        if stream is not None:
            stream.reset("enough", "for a test")

    @rule()
    def tick(self) -> None:
        for end in self.ends:
            end.take(end.mux.tick(0.0))

    # -- the path

    @rule(to=st.sampled_from([0, 1]), count=st.integers(1, 5))
    def deliver(self, to: int, count: int) -> None:
        self.send()
        for _ in range(min(count, len(self.flight[to]))):
            self.receive(to, self.flight[to].popleft())

    @rule(to=st.sampled_from([0, 1]))
    def deliver_twice(self, to: int) -> None:
        self.send()
        if self.flight[to]:
            message = self.flight[to].popleft()
            self.receive(to, message)
            self.receive(to, message)

    @precondition(lambda self: any(self.limbo))
    @rule(to=st.sampled_from([0, 1]), pick=st.integers(0), again=st.booleans())
    def deliver_late(self, to: int, pick: int, again: bool) -> None:
        if self.limbo[to]:
            index = pick % len(self.limbo[to])
            self.receive(to, self.limbo[to][index] if again else self.limbo[to].pop(index))

    @precondition(lambda self: not self.cut)
    @rule(
        kept=st.tuples(st.integers(0, 4), st.integers(0, 4)),
        late=st.booleans(),
        noticed=st.sampled_from([{OPENER}, {ACCEPTOR}, {OPENER, ACCEPTOR}]),
    )
    def lose(self, kept: tuple[int, int], late: bool, noticed: set[int]) -> None:
        """Break the path: some messages still arrive, the others are lost or very late."""
        self.send()
        for to in (0, 1):
            for _ in range(min(kept[to], len(self.flight[to]))):
                self.receive(to, self.flight[to].popleft())
            if late:
                self.limbo[to] += self.flight[to]
            self.flight[to].clear()
        self.cut = True
        self.noticed = noticed
        for side in noticed:
            self.ends[side].mux.path_down(0.0)

    @precondition(lambda self: self.cut)
    @rule()
    def heal(self) -> None:
        self.send()
        self.cut = False
        for side in sorted(self.noticed):
            self.ends[side].mux.path_up()

    # -- what must hold

    @invariant()
    def what_is_read_is_what_was_written(self) -> None:
        for side, end in enumerate(self.ends):
            other = self.ends[1 - side]
            for sid, data in end.read.items():
                written = other.written.get(sid, bytearray())
                assert written.startswith(data)
                if sid in end.finished:
                    assert data == written

    @invariant()
    def never_more_than_a_window_is_kept(self) -> None:
        for end in self.ends:
            for stream in end.streams.values():
                started = stream.acknowledged - stream._kept[0][0] if stream._kept else 0
                kept = sum(len(data) for _, data in stream._kept)
                assert kept - started <= stream.limit, "the first piece is kept whole until it is consumed whole"
                assert stream.unread <= stream.receive_window.granted
                assert max(stream.limit, stream.receive_window.granted) <= stream.window * GROWTH
            grown = any(stream.receive_window.granted > stream.window * PLAIN for stream in end.mux.streams.values())
            assert not grown or len(end.mux.bulk) > 0

    def teardown(self) -> None:
        """Mend the path, read and close everything, and check that nothing is left or missing."""
        if self.cut:
            self.heal()
        for _ in range(200):
            self.settle()
            if not any(end.mux.streams for end in self.ends):
                break
        assert not any(end.mux.streams for end in self.ends)
        for sid, stream in self.ends[OPENER].streams.items():
            other = self.ends[ACCEPTOR].streams.get(sid)
            if other is None:
                assert stream.reset_code is not None
                continue
            assert stream.closed
            assert other.closed
            for side, own in enumerate((stream, other)):
                if own.reset_code is None:
                    assert self.ends[side].read[sid] == self.ends[1 - side].written[sid]
                    assert sid in self.ends[side].finished
            if stream.reset_code != other.reset_code:
                codes = {stream.reset_code, other.reset_code}
                assert codes == {None, "enough"}, "reset while the other had finished"

    # -- helpers

    def settle(self) -> None:
        for end in self.ends:
            for stream in end.streams.values():
                stream.consume(stream.unread)
                stream.close()
            end.take(end.mux.tick(0.0))
        self.send()
        for to in (0, 1):
            while self.flight[to]:
                self.receive(to, self.flight[to].popleft())

    def pick(self, side: int, pick: int) -> tuple[End, Stream | None]:
        end = self.ends[side]
        streams = list(end.streams.values())
        return end, streams[pick % len(streams)] if streams else None

    def send(self) -> None:
        for side, end in enumerate(self.ends):
            frames = end.mux.take()
            if frames and not self.cut:
                self.flight[1 - side].append(encode(frames))

    def receive(self, to: int, message: list[bytes]) -> None:
        self.ends[to].take(self.ends[to].mux.receive(decode(message)))
        self.send()
        assert self.ends[to].mux.malformed == 0


TestStreams = Streams.TestCase
TestStreams.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)


# -- examples -----------------------------------------------------------------------------------------------------


def test_a_stream_carries_bytes_both_ways_and_closes() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor)
    opener.write(near, b"there")
    acceptor.write(far, b"and back")
    exchange(opener, acceptor)
    near.close()
    far.close()
    exchange(opener, acceptor)
    assert 1 in opener.mux.streams, "unread bytes are not acknowledged"
    near.consume(8)
    far.consume(5)
    exchange(opener, acceptor)
    assert near.closed
    assert far.closed
    assert opener.read[1] == b"and back"
    assert acceptor.read[1] == b"there"


def test_a_writer_is_stopped_by_the_window_and_told_when_it_may_go_on() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor, window=10)
    assert near.write(b"x" * 15) == 10
    assert near.write(b"x") == 0
    exchange(opener, acceptor)
    opener.blocked.add(1)
    far.consume(10)
    exchange(opener, acceptor)
    assert not opener.blocked
    assert near.room == 10


def test_stream_ids_are_not_reused_with_a_peer_that_comes_back() -> None:
    sids = count(1)
    opener, acceptor = linked(sids=sids)
    near, far = opened(opener, acceptor)
    far.close()
    near.close()
    exchange(opener, acceptor)
    assert not acceptor.mux.streams
    opener.take(opener.mux.peer_gone("agent_gone", "gone"))
    again = End(accepts=False, sids=sids)
    again.mux.path_up()
    near, far = opened(again, acceptor)
    again.write(near, b"new")
    exchange(again, acceptor)
    assert acceptor.read[near.sid] == b"new"


def test_a_peer_that_ignores_the_window_loses_the_stream() -> None:
    opener, acceptor = linked()
    opened(opener, acceptor, window=10)
    acceptor.take(acceptor.mux.receive([Frame(DATA, 0, 1, 0, 0, b"x" * (10 * GROWTH + 1))]))
    assert acceptor.resets == {1: "protocol_error"}
    assert acceptor.mux.malformed == 1
    exchange(opener, acceptor)
    assert opener.resets == {1: "protocol_error"}


@pytest.mark.parametrize(
    "frame",
    [
        Frame(OPEN, 0, 5, 0, 0, pack_body({})),
        Frame(OPEN, 0, 5, 10, 0, b"\xc1"),
        Frame(OPEN, 0, 0, 10, 0, pack_body({})),
        Frame(RESUME, 0, 0, 0, 0, b"1234567"),
        Frame(99, 0, 5),
    ],
)
def test_malformed_frames_are_counted_and_end_no_other_stream(frame: Frame) -> None:
    opener, acceptor = linked()
    near, _ = opened(opener, acceptor)
    assert acceptor.mux.receive([frame, Frame(DATA, 0, 1, 0, 0, b"still delivered")]) != []
    assert acceptor.mux.malformed == 1
    assert near.reset_code is None


@pytest.mark.parametrize("frame", [Frame(99, 0, 1), Frame(RESET, 0, 1, 0, 0, b"\xc1")])
def test_a_malformed_frame_ends_its_own_stream_only(frame: Frame) -> None:
    opener, acceptor = linked()
    opened(opener, acceptor)
    _, other = opened(opener, acceptor)
    acceptor.take(acceptor.mux.receive([frame]))
    assert acceptor.resets == {1: "protocol_error"}
    assert other.reset_code is None


def test_an_opener_accepts_no_streams() -> None:
    opener, _ = linked()
    assert opener.mux.receive([Frame(OPEN, 0, 5, 10, 0, pack_body({}))]) == []
    assert opener.mux.malformed == 1


def test_streams_beyond_the_limit_are_reset() -> None:
    opener, acceptor = linked(max_streams=1)
    opened(opener, acceptor)
    opener.know(opener.mux.open({}, 10))
    exchange(opener, acceptor)
    assert opener.resets == {2: "overloaded"}


def test_bytes_written_without_a_path_arrive_over_the_next_one() -> None:
    opener, acceptor = linked()
    near, _ = opened(opener, acceptor)
    opener.mux.path_down(0.0)
    opener.write(near, b"meanwhile")
    late = opener.know(opener.mux.open({}, 10))
    opener.write(late, b"opened too")
    assert opener.mux.take() == []
    opener.mux.path_up()
    exchange(opener, acceptor)
    assert acceptor.read == {1: b"meanwhile", 2: b"opened too"}


def test_data_is_resent_once_when_both_ends_notice_the_loss() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor)
    acceptor.write(far, b"hello")
    exchange(opener, acceptor)
    opener.write(near, b"x" * 50)
    opener.mux.take()
    for end in (opener, acceptor):
        end.mux.path_down(0.0)
    for end in (opener, acceptor):
        end.mux.path_up()
    passed = exchange(opener, acceptor)
    assert [len(frame.payload) for frame in passed if frame.type == DATA] == [50]


def test_a_reset_tells_how_much_was_consumed() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor)
    opener.write(near, b"12345")
    exchange(opener, acceptor)
    told = near.acknowledged
    far.consume(far.unread)
    far.reset("job_ended", "")
    exchange(opener, acceptor)
    assert near.reset_code == "job_ended"
    assert (told, near.acknowledged) == (0, 5)


def test_a_reset_that_claims_more_than_was_written_is_not_believed() -> None:
    opener, acceptor = linked()
    near, _ = opened(opener, acceptor)
    opener.write(near, b"12345")
    opener.mux.receive([Frame(RESET, 0, near.sid, 0, 6, pack_body({"code": "x"}))])
    assert near.acknowledged == 0


def test_a_reset_that_was_lost_is_told_when_the_path_is_back() -> None:
    for noticing in (0, 1):
        ends = linked()
        near, far = opened(*ends)
        (near, far)[0].reset("gone", "")
        ends[0].mux.take()
        ends[noticing].mux.path_up()
        exchange(*ends)
        assert far.reset_code == "gone"
        assert not ends[1].mux.streams


def test_a_path_that_stays_away_resets_every_stream_on_both_ends() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor)
    opener.mux.path_down(100.0)
    assert opener.mux.tick(100.0 + RESUME_TIMEOUT - 1) == []
    opener.take(opener.mux.tick(100.0 + RESUME_TIMEOUT))
    assert opener.resets == {1: "path_lost"}
    assert near.closed
    opener.mux.path_up()
    exchange(opener, acceptor)
    assert far.reset_code == "path_lost", "the other end had not noticed"


def test_streams_end_with_a_peer_that_is_gone() -> None:
    opener, acceptor = linked()
    opened(opener, acceptor)
    opener.take(opener.mux.peer_gone("agent_gone", "it left"))
    assert opener.resets == {1: "agent_gone"}
    assert not opener.mux.streams


def test_a_lost_acknowledgement_of_a_clean_end_is_resent() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor)
    near.close()
    exchange(opener, acceptor)
    far.close()
    frames = acceptor.mux.take()
    opener.take(opener.mux.receive(frames))
    assert near.closed
    opener.mux.take()
    assert 1 in acceptor.mux.streams
    acceptor.mux.path_up()
    exchange(opener, acceptor)
    assert far.closed
    assert far.reset_code is None


def test_streams_that_were_given_up_are_not_opened_again() -> None:
    opener, before = linked()
    unheard = opener.know(opener.mux.open({}, 10))
    before.take(before.mux.receive(opener.mux.take()))
    before.take(before.mux.peer_gone("worker_gone", "the worker is gone"))
    opener.mux.path_down(0.0)
    later = opener.know(opener.mux.open({}, 10))
    after = End(accepts=True, floor=before.mux.highest)
    for end in (opener, after):
        end.mux.path_up()
    exchange(opener, after)
    assert opener.resets == {unheard.sid: "worker_gone"}
    assert set(after.mux.streams) == {later.sid}
    assert after.mux.highest == later.sid


def test_frames_meant_for_another_process_are_dropped() -> None:
    opener, acceptor = End(accepts=False), End(accepts=True, process="new")
    acceptor.mux.path_up()
    opener.mux.path_up("old")
    late = opener.mux.open({}, 10)
    stale = opener.mux.take()
    acceptor.take(acceptor.mux.receive(stale))
    assert acceptor.mux.streams == {}
    opener.mux.peer_gone("agent_gone", "the agent was restarted")
    opener.mux.path_up("new")
    near = opener.know(opener.mux.open({}, 10))
    acceptor.take(acceptor.mux.receive([*stale, *opener.mux.take()]))
    assert set(acceptor.mux.streams) == {near.sid}
    assert near.sid != late.sid
    opener.mux.path_down(0.0)
    opener.mux.path_up("new")
    exchange(opener, acceptor)
    acceptor.write(acceptor.streams[near.sid], b"still here")
    exchange(opener, acceptor)
    assert opener.read[near.sid] == b"still here"


def test_frames_of_a_peer_that_names_no_process_are_accepted() -> None:
    opener, acceptor = End(accepts=False), End(accepts=True, process="new")
    for end in (opener, acceptor):
        end.mux.path_up()
    near, _ = opened(opener, acceptor)
    assert set(acceptor.mux.streams) == {near.sid}


def test_unknown_streams_are_reset() -> None:
    opener, acceptor = linked()
    assert acceptor.mux.receive([Frame(DATA, 0, 77, 0, 0, b"x")]) == []
    answers = acceptor.mux.take()
    assert [(frame.type, frame.sid) for frame in answers] == [(RESET, 77)]
    assert acceptor.mux.receive([Frame(ACK, 0, 78), Frame(RESET, 0, 79, payload=pack_body({}))]) == []
    assert acceptor.mux.take() == []
    assert opener.mux.malformed == acceptor.mux.malformed == 0


def test_everything_is_resent_to_an_opener_that_heard_nothing() -> None:
    opener, acceptor = linked()
    near = opener.know(opener.mux.open({}, 10))
    acceptor.take(acceptor.mux.receive(opener.mux.take()))
    far = acceptor.streams[1]
    acceptor.write(far, b"unheard")
    far.close()
    acceptor.mux.take()
    opener.mux.path_up()
    exchange(opener, acceptor)
    assert opener.read[1] == b"unheard"
    assert near.receiving is Direction.FIN


def test_misuse_of_a_stream_is_an_error() -> None:
    opener, acceptor = linked()
    near, _ = opened(opener, acceptor)
    with pytest.raises(ValueError, match="consumed more"):
        near.consume(1)
    near.close()
    near.close()
    with pytest.raises(ValueError, match="closed"):
        near.write(b"x")
    near.reset("a", "")
    near.reset("b", "")
    assert near.reset_code == "a"


def test_a_late_acknowledgement_is_sent_by_the_tick() -> None:
    opener, acceptor = linked()
    near, far = opened(opener, acceptor)
    opener.write(near, b"x")
    exchange(opener, acceptor)
    far.consume(1)
    assert acceptor.mux.take() == []
    acceptor.mux.tick(0.0)
    assert [(frame.type, frame.ack) for frame in acceptor.mux.take()] == [(ACK, 1)]


def test_a_resume_that_asks_is_answered_by_one_that_does_not() -> None:
    opener, acceptor = linked()
    opened(opener, acceptor)
    acceptor.mux.receive([Frame(RESUME, ASK, 1, 0, 0)])
    assert [(frame.type, frame.flags) for frame in acceptor.mux.take()] == [(RESUME, 0)]


def test_the_end_is_acknowledged_again_when_it_is_repeated() -> None:
    opener, acceptor = linked()
    near, _ = opened(opener, acceptor)
    near.close()
    exchange(opener, acceptor)
    acceptor.mux.receive([Frame(DATA, FIN, 1, 0, 0)])
    assert [(frame.type, frame.ack) for frame in acceptor.mux.take()] == [(ACK, 1)]
