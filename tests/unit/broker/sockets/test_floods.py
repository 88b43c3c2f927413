"""Peers that send more than others take: pending bytes are bounded, and honest peers lose nothing for good."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import cast

import pytest

from prouter.broker.base.settings import Bounds
from prouter.broker.base.switch import Path, Switch
from prouter.broker.links.exclusion import Exclusion
from prouter.broker.sockets.backlog import MOST, MOST_OF_ONE, SHARE, SMALL, Backlog
from prouter.broker.sockets.port import Port
from prouter.fabric.frames import ACK, ASK, DATA, EVENT, OPEN, RESUME, Frame, encode
from prouter.fabric.mux import Mux
from prouter.fabric.session import Session
from prouter.fabric.stream import Stream
from prouter.transport.peer import Peer, PeerDelegate
from prouter.transport.zmtp.codec import encode_message
from prouter.transport.zmtp.handshakes import opening
from prouter.transport.zmtp.wire import Wire
from tests.support.broker_world import World

MIB = 1024 * 1024


def filled(backlog: Backlog, source: bytes, taken: int, sent: int = 0, size: int = MIB) -> int:
    """How many bytes of `source` are admitted."""
    admitted = 0
    while backlog.admit(source, size, size, taken + admitted, sent):
        admitted += size
    return admitted


def test_one_sender_cannot_fill_the_queue_of_all() -> None:
    backlog = Backlog()
    first = filled(backlog, b"a", SMALL)
    assert MOST_OF_ONE <= first <= MOST_OF_ONE + MIB
    second = filled(backlog, b"b", SMALL + first)
    assert first + second <= MOST + MIB
    assert filled(backlog, b"c", SMALL + first + second) == SHARE, "everybody has a share, however full it is"


def test_who_was_refused_is_admitted_again_once_what_waited_has_left() -> None:
    backlog = Backlog()
    taken = filled(backlog, b"a", 0)
    assert not backlog.admit(b"a", MIB, MIB, taken, 0)
    assert filled(backlog, b"a", taken, taken) >= MOST_OF_ONE


def test_a_sender_of_whom_much_has_passed_is_not_taken_for_one_that_fills_the_queue() -> None:
    backlog, taken = Backlog(), 2 * MIB
    for _ in range(2000):
        assert backlog.admit(b"a", MIB, MIB, taken, taken - 2 * MIB)
        taken += MIB


def test_a_sender_whose_messages_cost_more_than_their_bytes_is_admitted_again_once_they_have_left() -> None:
    backlog, taken = Backlog(), SMALL
    while backlog.admit(b"a", MIB, 17 * MIB, taken, 0):
        taken += MIB
    assert taken == SMALL + 4 * MIB
    assert filled(backlog, b"a", taken + SMALL, taken) >= MOST_OF_ONE


class _Routing:
    """What a port reports."""

    def __init__(self) -> None:
        self.dropped = 0

    def unreachable(self, target: Path, now: float) -> None:
        raise AssertionError("everybody is there")

    def unroutable(self, source: Path, now: float) -> None:
        raise AssertionError("everybody is there")

    def overflowed(self, source: Path, target: Path, size: int, now: float) -> None:
        self.dropped += size


@contextmanager
def connected() -> Iterator[tuple[Port, socket.socket]]:
    """A port of an accepted peer, and the peer's end."""
    ours, theirs = socket.socketpair()
    port = Port([])
    with closing(theirs):
        port.connected(Wire(ours, b"ROUTER", b"DEALER", limit=MIB))
        port.accept(Path(port, b"", Session(0.0, 2.0), 0.0))
        theirs.sendall(opening(b"DEALER"))
        yield port, theirs
        port.close()


def test_what_waits_for_a_peer_that_stands_still_is_bounded_and_told_when_it_goes_on() -> None:
    switch, routing = Switch(), _Routing()
    with connected() as (agent, agents_end), connected() as (worker, workers_end):
        assert agent.path is not None
        assert worker.path is not None
        switch.add_agent(agent.path, "a" * 32)
        switch.add_worker(worker.path, "worker")
        for port in (agent, worker):
            port.pump(switch, 0.0, lambda port, parts, now: None, routing)
        data = b"".join(encode_message([b"worker", *encode([Frame(DATA, sid=1, payload=bytes(MIB))])]))
        agents_end.setblocking(False)
        left, sent = data, 0
        while routing.dropped < 3 * MIB:
            count = agents_end.send(left)
            sent += count
            left = left[count:] or data
            agent.pump(switch, 0.0, lambda port, parts, now: None, routing)
        worker.flush()
        blocked = worker.blocked
        assert blocked
        assert sent < MOST_OF_ONE + 8 * MIB
        assert not worker.relieved(0.5)
        workers_end.setblocking(False)
        while worker.blocked:
            workers_end.recv(MIB)
            worker.flush()
        assert worker.relieved(0.5) == [agent.path]
        assert worker.relieved(0.5) == []


def test_a_reader_that_is_always_a_little_behind_gets_control_frames_for_ever_and_one_that_stands_still_does_not() -> (
    None
):
    with connected() as (port, peers_end):
        assert port.path is not None
        port.pump(Switch(), 0.0, lambda port, parts, now: None, _Routing())
        peers_end.setblocking(False)

        def send() -> bool:
            assert port.path is not None
            port.path.pending = [Frame(EVENT, payload=bytes(MIB))]
            sent = port.send(port.path)
            port.flush()
            return sent

        while not port.blocked:
            assert send()
        for _ in range(200):
            assert send()
            received = 0
            while received < MIB:
                received += len(peers_end.recv(MIB - received))
                port.flush()
            assert port.blocked
        more = 0
        while send():
            more += 1
        assert more < 70


def test_streams_resume_when_there_is_room_again() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    agents_path, workers_path = world.path_of(agent), world.path_of(worker)
    assert agents_path is not None
    assert workers_path is not None
    for source, target in ((agents_path, workers_path), (workers_path, agents_path)):
        told = len(worker.of("link.up"))
        world.broker.flood_guard.overflowed(source, MIB, world.now)
        world.broker.flood_guard.relieved(target, [source], world.now)
        world.settle()
        assert worker.of("link.up")[told:] == [world.broker.links.get(agent.connection).describe()]  # type: ignore[union-attr]
    assert [path for path, _ in world.paused] == [agents_path], "a worker serves others, too"


def test_an_agent_that_goes_on_sending_what_nobody_takes_loses_its_link() -> None:
    world = World(bounds=Bounds(overflow=10 * MIB))
    worker, agent = world.worker(), world.agent()
    path = world.path_of(agent)
    assert path is not None
    for _ in range(11):
        world.broker.flood_guard.overflowed(path, MIB, world.now)
    world.settle()
    assert worker.of("link.down")
    assert world.env.counts["floods"]


def test_an_agent_that_floods_a_worker_with_frames_of_no_use_loses_its_link() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    worker.notify("strays", connection="nobody", frames=10**6)
    assert not worker.of("link.down")
    worker.notify("strays", connection=agent.connection, frames=10**6)
    assert "frames that lead to no stream" in worker.of("link.down")[0]["reason"]


def test_frames_that_lead_to_no_stream_and_those_that_ask_for_repetition_are_counted() -> None:
    mux = Mux(lambda mux: None)
    mux.path_up()
    stream = mux.open({"kind": "http"})
    mux.receive([Frame(DATA, sid=77, payload=b"x"), Frame(RESUME, sid=stream.sid), Frame(RESUME, sid=78)])
    mux.receive([Frame(DATA, sid=stream.sid, payload=b"x")])
    assert mux.strays == 3
    mux.receive([Frame(RESUME, payload=bytes(6400))])
    assert mux.strays == 104, "a long list takes long"


def test_an_agent_that_floods_again_and_again_waits_longer_but_never_for_ever() -> None:
    exclusion, now, waits = Exclusion(), 100.0, []
    for _ in range(6):
        exclusion.cut_off("a", "token", now)
        waits.append(exclusion.left("a", now))
        now += waits[-1]
        assert not exclusion.left("a", now)
        assert not exclusion.left("b", now)
    assert waits == [2, 4, 8, 16, 20, 20]
    exclusion.cut_off("a", "token", now + 3600)
    assert exclusion.left("a", now + 3600) == 2


def test_agents_that_flood_under_ever_new_names_do_not_get_in_for_a_while() -> None:
    exclusion = Exclusion()
    for number in range(9):
        assert not exclusion.left_for_new("token", 100.0 + number)
        exclusion.cut_off(f"agent-{number}", "token", 100.0 + number)
    assert exclusion.left_for_new("token", 109.0) == 11
    assert not exclusion.left_for_new("another", 109.0)
    assert not exclusion.left_for_new("token", 120.0)
    exclusion.cut_off("agent-10", "token", 120.0)
    assert exclusion.left_for_new("token", 120.0) == 1, "one at a time gets in"
    exclusion.cut_off("agent-11", "token", 190.0)
    assert not exclusion.left_for_new("token", 190.0)


def _mux_with_a_stream(kept: int = 0) -> tuple[Mux, Stream]:
    """Of a worker that has written `kept` bytes to an agent."""
    mux = Mux(lambda mux: None)
    mux.path_up()
    stream = mux.open({"kind": "http"})
    stream.write(bytes(kept))
    mux.receive([Frame(ACK, sid=stream.sid)])
    mux.take()
    mux.strays = 0
    return mux, stream


def _size(frames: list[Frame]) -> int:
    return sum(len(frame.payload) for frame in frames if frame.type == DATA)


def test_who_asks_for_repetition_many_times_at_once_gets_it_once() -> None:
    mux, stream = _mux_with_a_stream(kept=200_000)
    mux.receive([Frame(RESUME, ASK, stream.sid)] * 30_000)
    assert _size(mux.take()) == 200_000


@pytest.mark.parametrize("listed", [False, True])
def test_who_asks_for_repetition_again_and_again_is_counted_by_what_that_costs(listed: bool) -> None:
    mux, stream = _mux_with_a_stream(kept=200_000)
    ask = Frame(RESUME) if listed else Frame(RESUME, ASK, stream.sid)
    sent = 0
    for _ in range(10_000):
        mux.receive([ask, Frame(RESUME, ASK, stream.sid)])
        sent += _size(mux.take())
        if mux.strays > 20_000:
            break
    assert mux.strays > 20_000
    assert sent < 100 * MIB


def test_streams_that_all_resume_once_are_no_flood() -> None:
    mux = Mux(lambda mux: None)
    mux.path_up()
    streams = [mux.open({"kind": "http"}) for _ in range(1000)]
    for stream in streams:
        stream.write(bytes(200_000))
    mux.receive([Frame(ACK, sid=stream.sid) for stream in streams])
    mux.take()
    mux.strays = 0
    mux.path_up()
    mux.receive([Frame(RESUME), *(Frame(RESUME, ASK, stream.sid) for stream in streams)])
    assert mux.strays <= 4 * len(streams)
    assert _size(mux.take()) == 1000 * 200_000


@pytest.mark.parametrize(
    "frame",
    [
        Frame(DATA, sid=1, payload=bytes(262_144)),
        Frame(DATA, sid=1, offset=1 << 40, payload=bytes(262_144)),
        Frame(DATA, sid=77, payload=bytes(262_144)),
        Frame(ACK, sid=1, offset=7),
        Frame(OPEN, sid=1, offset=7),
    ],
    ids=["repeated", "beyond a gap", "of no stream", "acknowledges nothing", "opens again"],
)
def test_frames_that_bring_nothing_are_counted_by_their_size(frame: Frame) -> None:
    mux, stream = _mux_with_a_stream()
    mux.receive([Frame(DATA, sid=stream.sid, payload=bytes(262_144))])
    for _ in range(25_000):
        mux.receive([frame])
        mux.take()
        if mux.strays > 20_000:
            break
    assert mux.strays > 20_000


def test_what_was_under_way_to_a_stream_that_ended_is_no_flood() -> None:
    mux = Mux(lambda mux: None)
    mux.path_up()
    for _ in range(100):
        stream = mux.open({"kind": "http"})
        stream.reset("client_gone", "")
        mux.receive([Frame(DATA, sid=stream.sid, offset=at << 18, payload=bytes(1 << 18)) for at in range(16)])
    assert mux.strays == 1600


def test_a_list_of_more_streams_than_there_can_be_is_not_read() -> None:
    mux, _ = _mux_with_a_stream()
    mux.receive([Frame(RESUME, payload=bytes(2 * MIB))])
    assert mux.malformed == 1


def test_a_flood_is_told_before_the_next_tick() -> None:
    told: list[tuple[bytes, int]] = []
    peer = Peer(cast(PeerDelegate, None))
    peer.streams.on_strays = lambda route, frames: told.append((route, frames))
    peer.route_up(b"agent")
    for _ in range(25):
        peer.receive([b"agent", *encode([Frame(DATA, sid=77, payload=b"x")] * 1000)])
    assert [route for route, _ in told] == [b"agent"]
    assert peer.mux(b"agent").strays == 0, "nothing more is heard of it, for it is about to lose its path"
    peer.route_up(b"agent")
    peer.receive([b"agent", *encode([Frame(DATA, sid=77, payload=b"x")])])
    assert peer.mux(b"agent").strays == 1


def test_what_the_broker_slept_is_nobodys_silence() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    world.run(1.0)
    for _ in range(20):
        world.now += 0.9
        world.broker.excuse(0.9, world.now)
        world.broker.iterate(world.now)
    assert not worker.of("link.down")
    assert world.path_of(agent) is not None
    assert world.path_of(worker) is not None


def test_nobody_is_lost_by_silence_while_others_wait_to_be_heard() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    agent.frozen = True
    world.broker.heartbeats.behind = True
    world.run(8.0)
    assert not worker.of("link.down")
    world.broker.heartbeats.behind = False
    world.run(0.3)
    assert worker.of("link.down")
