"""What a worker knows of jobs is never older than what it was told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from prouter.api.client import RouterClient
from prouter.config import RouterConfig
from prouter.jobs import JobRecord, State

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
    client._job_changed(record)


def test_news_that_overtake_the_answer_count() -> None:
    client = Asked(STARTING, lambda client: tell(client, RUNNING))
    assert client.route("connection", "job").record == RUNNING
    assert not client._news
    assert not client._asked


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
        client.on_ready(client._peer, {"links": [link]})
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
    assert not client._processes
