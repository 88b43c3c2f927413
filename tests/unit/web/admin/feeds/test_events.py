"""The feed of job and agent changes: ids, replay, gaps, slow and stuck followers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from prouter.jobs import JobRecord, State
from prouter.web.admin.app import create_app
from prouter.web.admin.feeds import event_feed, sse
from prouter.web.admin.feeds.event_feed import EventFeed
from prouter.web.gunicorn import admin
from tests.support.api_stand import CONNECTION, JOB, StandInRouter, StandInServer
from tests.support.loopback import wait_for
from tests.unit.web.admin.feeds.test_logs import Client, events


class Broker:
    """The broker's side: a log of events, of which workers hear at once or, when `cut`, never."""

    def __init__(self, router: StandInRouter, kept: int = 10_000) -> None:
        self.router = router
        self.kept = kept
        self.log: list[dict[str, Any]] = []
        self.last = 100
        router.answers["events"] = self.answer

    def answer(self, args: dict[str, Any]) -> dict[str, Any]:
        kept = self.log[-self.kept :]
        after = args["after"]
        found = kept[-args["limit"] :] if after is None else [event for event in kept if event["id"] > after]
        first = kept[0]["id"] if kept else self.last + 1
        return {"events": found[: args["limit"]], "first": first, "last": self.last}

    def emit(self, state: State = State.RUNNING, *, cut: bool = False, name: str = "a job") -> int:
        """A job changed; the event's id."""
        record = JobRecord(JOB, CONNECTION, name, state, created_at=1_767_323_045.678).to_wire()
        return self.publish("job", {"record": record}, cut=cut)

    def publish(self, name: str, body: dict[str, Any], *, cut: bool = False) -> int:
        """Something happened; the event's id."""
        self.last += 1
        told = {**body, "id": self.last, "at": 1_767_323_045.678}
        self.log.append({"id": self.last, "at": told["at"], "name": name, "body": told})
        if not cut:
            self.router.emit(name, told)
        return self.last


@pytest.fixture
def router() -> Iterator[StandInRouter]:
    with gevent.Timeout(15):
        yield StandInRouter()


@pytest.fixture
def broker(router: StandInRouter) -> Broker:
    return Broker(router)


@pytest.fixture
def feed(router: StandInRouter, broker: Broker) -> EventFeed:
    return EventFeed(router, size=10)  # type: ignore[arg-type]


def ids(follower: Iterator[bytes], count: int) -> list[int]:
    """The ids of the next `count` events."""
    found: list[int] = []
    while len(found) < count:
        found += [int(event["id"]) for event in events(next(follower).decode())]
    return found


def test_a_follower_gets_what_happens_from_now_on(feed: EventFeed, broker: Broker) -> None:
    broker.emit()
    follower = feed.follow(None)
    assert next(follower) == sse.RETRY
    new = [broker.emit(), broker.emit()]
    assert ids(follower, 2) == new


def test_now_is_when_the_broker_says_for_a_worker_that_is_behind(
    feed: EventFeed, broker: Broker, router: StandInRouter
) -> None:
    feed.follow(None)
    wait_for(lambda: not feed._catching_up)
    old = broker.emit(State.RUNNING, cut=True)

    def sync(args: dict[str, Any]) -> dict[str, Any]:
        router.emit(broker.log[-1]["name"], broker.log[-1]["body"])
        return {}

    router.answers["sync"] = sync
    follower = feed.follow(None)
    assert follower.position == old, "its client may have heard of this from another worker"
    new = broker.emit(State.FINISHED)
    assert ids(follower, 1) == [new]


def test_an_event_tells_what_job_info_tells(feed: EventFeed, broker: Broker) -> None:
    follower = feed.follow(None)
    next(follower)
    event_id = broker.emit()
    event = events(next(follower).decode())[0]
    assert (event["id"], event["event"]) == (str(event_id), "job")
    data = event["data"]
    assert (data["id"], data["at"], data["connection"]) == (event_id, "2026-01-02T03:04:05.678Z", CONNECTION)
    job = data["job"]
    assert (job["uid"], job["state"], job["path"]) == (JOB, "RUNNING", f"/jobs/{CONNECTION}/{JOB}")
    assert job["created_at"] == "2026-01-02T03:04:05.678Z"
    assert job["base_url"] is None
    assert not {"endpoint", "revision", "path_mode", "connection"} & job.keys()


def test_an_agents_event_is_passed_on(feed: EventFeed, broker: Broker) -> None:
    follower = feed.follow(None)
    next(follower)
    agent = {"uid": "a", "name": "n"}
    broker.publish("agent", {"connection": "c1", "agent": agent, "change": "up"})
    event = events(next(follower).decode())[0]
    assert event["event"] == "agent"
    assert (event["data"]["agent"], event["data"]["change"]) == (agent, "up")


def test_a_follower_resumes_where_it_was(feed: EventFeed, broker: Broker) -> None:
    old = [broker.emit() for _ in range(1200)]
    follower = feed.follow(old[99])
    next(follower)
    new = broker.emit()
    assert ids(follower, 1101) == [*old[100:], new]


def test_what_is_not_kept_any_more_is_told_as_dropped(feed: EventFeed, broker: Broker) -> None:
    broker.kept = 5
    old = [broker.emit() for _ in range(20)]
    follower = feed.follow(old[0])
    next(follower)
    found = events(next(follower).decode())
    assert found[0]["event"] == "dropped"
    assert found[0]["data"] == {"reason": "expired", "first": old[15]}
    assert [int(event["id"]) for event in found[1:]] == old[15:]


def test_what_the_worker_missed_is_asked_for(feed: EventFeed, broker: Broker) -> None:
    follower = feed.follow(None)
    next(follower)
    new = [broker.emit(), broker.emit(cut=True), broker.emit(cut=True), broker.emit()]
    assert ids(follower, 4) == new
    new = [broker.emit()]
    assert ids(follower, 1) == new


def test_what_was_missed_while_the_broker_was_away_is_asked_for_once_it_is_back(
    feed: EventFeed, broker: Broker, router: StandInRouter
) -> None:
    follower = feed.follow(None)
    next(follower)
    first = broker.emit()
    assert ids(follower, 1) == [first]
    missed = [broker.emit(cut=True), broker.emit(cut=True)]
    router.on_linked()
    assert ids(follower, 2) == missed


def test_ids_that_leap_with_a_new_broker_are_followed(feed: EventFeed, broker: Broker) -> None:
    follower = feed.follow(None)
    next(follower)
    first = broker.emit()
    assert ids(follower, 1) == [first]
    broker.log.clear()
    broker.last += 1_000_000
    new = broker.emit()
    found = events(next(follower).decode())
    while not found or found[-1]["event"] != "job":
        found += events(next(follower).decode())
    assert [event["event"] for event in found] == ["dropped", "job"]
    assert found[-1]["id"] == str(new)


def test_a_new_broker_that_knows_the_events_of_the_one_before_costs_nobody_any(feed: EventFeed, broker: Broker) -> None:
    follower, behind = feed.follow(None), feed.follow(None)
    assert (next(follower), next(behind)) == (sse.RETRY, sse.RETRY)
    told = [broker.emit()]
    assert ids(follower, 1) == told
    told.append(broker.emit(cut=True))
    broker.last += 1_000_000
    told += [broker.emit(), broker.emit()]
    assert ids(follower, 3) == told[1:]
    told.append(broker.emit())
    assert ids(follower, 1) == told[-1:]
    assert ids(behind, 5) == told


def test_an_id_of_another_router_means_now_and_that_events_are_missing(feed: EventFeed, broker: Broker) -> None:
    follower = feed.follow(10**15)
    next(follower)
    found = events(next(follower).decode())
    assert [(event["event"], event["data"]["reason"]) for event in found] == [("dropped", "expired")]
    new = broker.emit()
    assert ids(follower, 1) == [new]
    assert found[0]["data"]["first"] == new
    assert found[0]["id"] == str(new - 1)


def test_a_slow_follower_is_dropped_with_an_id_to_resume_by(feed: EventFeed, broker: Broker) -> None:
    follower = feed.follow(None)
    next(follower)
    seen = ids_after = broker.emit()
    assert ids(follower, 1) == [seen]
    for _ in range(20):
        broker.emit()
    event = events(next(follower).decode())[0]
    assert (event["event"], event["id"], event["data"]["reason"]) == ("dropped", str(ids_after), "slow")
    with pytest.raises(StopIteration):
        next(follower)
    resumed = feed.follow(seen)
    next(resumed)
    assert ids(resumed, 20) == [event["id"] for event in broker.log[-20:]]


def test_a_follower_is_given_little_at_once_and_misses_nothing(router: StandInRouter, broker: Broker) -> None:
    feed = EventFeed(router, size=100)  # type: ignore[arg-type]
    follower = feed.follow(None)
    next(follower)
    for number in range(60):
        broker.emit(name=f"{number} " + "x" * 5000)
    seen = b""
    pieces = 0
    while seen.count(b"event: job") < 60:
        piece = next(follower)
        assert len(piece) <= 65536
        seen += piece
        pieces += 1
    assert pieces >= 5
    assert [int(name) for name in re.findall(rb'"name":"(\d+) ', seen)] == list(range(60))


def test_the_ring_is_bounded_in_bytes_and_keeps_the_newest(
    feed: EventFeed, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_feed, "RING_BYTES", 20_000)
    slow, quick = feed.follow(None), feed.follow(None)
    for follower in (slow, quick):
        next(follower)
    broker.emit()
    assert b"event: job" in next(slow)
    for _ in range(5):
        broker.emit(name="x" * 30_000)
        assert b"event: job" in next(quick)
    assert b'"reason":"slow"' in next(slow)


def test_silence_is_filled_with_comments(feed: EventFeed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT", 0.01)
    follower = feed.follow(None)
    next(follower)
    assert next(follower) == sse.COMMENT


def test_a_stuck_client_is_cut_off(router: StandInRouter, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_feed, "_SWEEP", 0.01)
    monkeypatch.setattr(admin, "_WRITE_AHEAD", 1000)
    with StandInServer(router) as server:
        client = server.connect("GET /events HTTP/1.1", receive_buffer=4096)
        wait_for(lambda: router.subscribers and server.service)
        client.recv(4096)
        wait_for(lambda: len(server.proxy.connections) == 1)
        while server.proxy.connections:
            for _ in range(200):
                broker.emit()
            gevent.sleep(0.001)


def test_who_is_shown_the_past_has_time_for_each_piece_of_it(feed: EventFeed, broker: Broker) -> None:
    before = feed.follow(None).position
    told = [broker.emit(name="x" * 5000) for _ in range(60)]
    steady, stuck = feed.follow(before), feed.follow(before)
    seen: list[int] = []
    turn = Event()

    def read() -> None:
        for piece in steady:
            assert len(piece) <= 65536
            seen.extend(int(event["id"]) for event in events(piece.decode()) if event["event"] == "job")
            turn.wait()
            turn.clear()

    def take_two() -> None:
        next(stuck)
        next(stuck)
        Event().wait()

    reader, taker = gevent.spawn(read), gevent.spawn(take_two)
    while seen != told:
        gevent.sleep(0)
        for follower in (steady, stuck):
            follower.drop_if_stuck()
        assert not reader.dead
        turn.set()
    assert taker.dead
    reader.kill()


def test_followers_go_when_the_router_drains(
    feed: EventFeed, router: StandInRouter, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_feed, "_SWEEP", 0.01)
    follower = feed.follow(None)
    next(follower)
    gevent.spawn_later(0.02, setattr, router, "draining", True)
    assert b"event" not in b"".join(follower)


@pytest.mark.parametrize("value", ["x", "-1", "9" * 19])
def test_a_wrong_id_is_refused(router: StandInRouter, broker: Broker, value: str) -> None:
    client = Client(create_app(router, router.config, router.gate))  # type: ignore[arg-type]
    result = client.simulate_get("/events", headers={"Last-Event-ID": value})
    assert result.status_code == 400
    assert "Last-Event-ID" in result.json["detail"]


def test_a_client_that_leaves_is_forgotten(router: StandInRouter, broker: Broker) -> None:
    with StandInServer(router) as server:
        client = server.connect("GET /events HTTP/1.1")
        assert b"text/event-stream" in client.recv(4096)
        broker.emit()
        assert b"event: job" in client.recv(4096)
        client.close()
        wait_for(lambda: not server.proxy.connections)
