"""A worker's knowledge of jobs is never older than what the broker has told it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import gevent
import pytest
from gevent.event import Event

from prouter.config import RouterConfig
from prouter.errors import AgentUnavailable, Conflict, JobStarting, PRouterError
from prouter.jobs import JobRecord, Reason, State
from prouter.web.router_client import RouterClient
from prouter.web.routes import JobRoute
from prouter.web.shared_call import SharedCall

STARTING = JobRecord("job", "connection", "a job", State.PENDING, revision=3)
RUNNING = replace(STARTING, state=State.RUNNING, revision=4, endpoint={"port": 5000})


class Asked(RouterClient):
    """A client whose broker answers what it is told to, after something else happened."""

    def __init__(self, record: JobRecord, meanwhile: Callable[[RouterClient], Any]) -> None:
        super().__init__(RouterConfig(), "ipc:///nowhere")
        self._record = record
        self._meanwhile = meanwhile

    def call(self, op: str, args: dict[str, Any], *, timeout: float | None = None) -> dict[str, Any]:
        assert op == "jobs.route"
        meanwhile, self._meanwhile = self._meanwhile, lambda client: None
        meanwhile(self)
        return {"record": self._record.to_wire(), "up": True}


def tell(client: RouterClient, record: JobRecord) -> None:
    client._routes.job_changed(record)


def test_news_that_overtake_the_answer_count() -> None:
    client = Asked(STARTING, lambda client: tell(client, RUNNING))
    assert client.route("connection", "job").record == RUNNING
    assert not client._routes._updates
    assert not client._routes._asked


def test_old_news_do_not_undo_the_answer() -> None:
    client = Asked(RUNNING, lambda client: tell(client, STARTING))
    assert client.route("connection", "job").record == RUNNING


def test_all_who_ask_at_once_watch_the_same_route() -> None:
    first: list[Any] = []
    client = Asked(STARTING, lambda client: first.append(client.route("connection", "job")))
    route = client.route("connection", "job")
    assert route is first[0]
    tell(client, RUNNING)
    assert route.record == RUNNING


def test_streams_to_far_agents_begin_with_larger_windows() -> None:
    client = RouterClient(RouterConfig(), "ipc:///nowhere")
    window = client.config.fabric.window

    def opened(**options: Any) -> int:
        return client.open_stream("c", {}, **options).window

    client.on_event(client._peer, "link.up", {"connection": "c", "up": True})
    assert opened() == window
    client.on_event(client._peer, "link.distance", {"connection": "c", "far": True})
    assert (opened(), opened(window=1000)) == (4 * window, 1000)
    client.on_event(client._peer, "link.down", {"connection": "c", "gone": True})
    client.on_event(client._peer, "link.up", {"connection": "c", "up": True})
    assert opened() == window


def test_streams_with_an_agent_end_when_another_process_of_it_is_there() -> None:
    client = RouterClient(RouterConfig(), "ipc:///nowhere")

    def tell(process: str, *, up: bool = True) -> bool:
        """The broker links the client and tells of the agent; whether the stream is still there."""
        link = {"connection": "c", "process": process, "up": up}
        client.on_event(client._peer, "link.up", link)
        client.on_event(client._peer, "links", {"links": [link], "last": True, "complete": False})
        return not stream.closed

    client.on_event(client._peer, "link.up", {"connection": "c", "process": "one", "up": True})
    stream = client.open_stream("c", {})
    assert tell("one")
    assert tell("zero", up=False), "what a broker remembers from before it was started may be old"
    assert tell("one")
    assert not tell("two")
    stream = client.open_stream("c", {})
    assert tell("two")
    client.on_event(client._peer, "link.down", {"connection": "c", "gone": True})
    assert not client._links._processes


class Behind(RouterClient):
    """A client that hears what the broker said before a call only with the answer to that call.

    Attributes:
        calls: what the broker was asked.
        news: what it has said, and the client has not heard yet.
    """

    def __init__(self, record: JobRecord) -> None:
        super().__init__(RouterConfig.model_validate({"control": {"hold": 5}}), "ipc:///nowhere")
        self.record = record
        self.calls: list[str] = []
        self.news: list[Callable[[], None]] = []
        self.on_event(self._peer, "link.up", {"connection": "connection", "process": "p", "up": True})

    def call(self, op: str, args: dict[str, Any], *, timeout: float | None = None) -> dict[str, Any]:
        self.calls.append(op)
        gevent.sleep(0)
        while self.news:
            self.news.pop(0)()
        return {"record": self.record.to_wire(), "up": True} if op == "jobs.route" else {}

    def change(self, record: JobRecord) -> None:
        """The job changes; other workers know."""
        self.record = record
        self.news.append(lambda: tell(self, record))


NEW = replace(STARTING, state=State.NEW, revision=1)
ENDED = replace(RUNNING, state=State.FINISHED, reason=Reason.EXITED, revision=5)
REMOVED = replace(ENDED, state=State.CLOSED, revision=6)


def not_running(route: JobRoute) -> PRouterError | None:
    """An obstacle like those of the proxy and the bridges."""
    if route.record.state is State.RUNNING:
        return None
    return (JobStarting if route.record.state is State.PENDING else Conflict)(route.record.state.value)


@pytest.mark.parametrize("known", [NEW, STARTING, replace(ENDED, revision=3)], ids=["new", "starting", "lost before"])
def test_what_another_worker_was_told_of_a_start_is_known_before_a_refusal(known: JobRecord) -> None:
    client = Behind(known)
    client.route("connection", "job")
    client.change(RUNNING)
    assert client.usable_route("connection", "job", not_running).record == RUNNING
    assert client.calls == ["jobs.route", "sync"]


@pytest.mark.parametrize("now", [ENDED, REMOVED], ids=["ended", "removed"])
def test_a_refusal_names_the_state_that_the_broker_knows(now: JobRecord) -> None:
    client = Behind(NEW)
    client.route("connection", "job")
    client.change(now)
    with pytest.raises(Conflict, match=now.state.value):
        client.usable_route("connection", "job", not_running)


def test_a_job_that_can_be_used_costs_no_question() -> None:
    client = Behind(RUNNING)
    for _ in range(3):
        client.usable_route("connection", "job", not_running)
    assert client.calls == ["jobs.route"]


def test_the_last_look_before_time_is_up_is_the_brokers() -> None:
    client = Behind(STARTING)
    client.route("connection", "job")
    gevent.spawn_later(0.05, client.change, RUNNING)  # no event arrives
    assert client.usable_route("connection", "job", not_running, time.monotonic() + 0.2).record == RUNNING
    assert client.calls.count("sync") == 1


def test_an_agent_that_came_back_is_known_before_it_is_called_away() -> None:
    client = Behind(RUNNING)
    client.route("connection", "job")
    client.on_event(client._peer, "link.down", {"connection": "connection", "gone": False})
    up = {"connection": "connection", "process": "p", "up": True}
    client.news.append(lambda: client.on_event(client._peer, "link.up", up))
    away = AgentUnavailable("away")
    assert client.usable_route("connection", "job", lambda route: None if route.up else away).up


def test_a_thousand_refusals_at_once_cost_the_broker_two_questions() -> None:
    client = Behind(ENDED)
    client.route("connection", "job")

    def refused() -> bool:
        try:
            client.usable_route("connection", "job", not_running)
        except Conflict:
            return True
        return False

    requests = [gevent.spawn(refused) for _ in range(1000)]
    assert all(request.get(timeout=10) for request in requests)
    assert client.calls.count("sync") <= 2


def test_an_answer_is_never_older_than_the_question() -> None:
    released = Event()
    number = count()

    def ask() -> int:
        mine = next(number)
        if mine == 0:
            released.wait(10)
        return mine

    shared = SharedCall(ask)
    first = gevent.spawn(shared.get, 10)
    gevent.sleep(0)
    gevent.sleep(0)
    later = [gevent.spawn(shared.get, 10) for _ in range(5)]
    gevent.sleep(0)
    released.set()
    assert first.get(timeout=10) == 0
    assert {request.get(timeout=10) for request in later} == {1}


def test_errors_and_time_limits_of_a_shared_question_reach_all_who_asked() -> None:
    def fail() -> None:
        raise AgentUnavailable("gone")

    shared = SharedCall(fail)
    for request in [gevent.spawn(shared.get, 10) for _ in range(3)]:
        with pytest.raises(AgentUnavailable, match="gone"):
            request.get(timeout=10)
    never = SharedCall(Event().wait)
    with pytest.raises(AgentUnavailable, match=r"within 0\.01 s"):
        never.get(0.01)
