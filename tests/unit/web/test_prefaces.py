"""Agents that answer wrongly, or not at all: clients get a clear error (502, 504), and no traceback."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import falcon.testing
import gevent
import pytest

from prouter.config import RouterConfig
from prouter.errors import AgentTimeout, PRouterError, from_wire
from prouter.fabric.stream import Stream
from prouter.transport.stream_io import StreamIO, StreamReset
from prouter.web.admin.app import create_app
from tests.support.api_stand import PATH, StandInAgent, StandInRouter, StandInServer
from tests.support.loopback import Loopback, wait_for

Client = falcon.testing.TestClient
Serve = Callable[[StreamIO], None]
READ: dict[str, Any] = {"ok": True, "size": 5, "mtime_ns": 1, "etag": '"e"', "mode": 0o644, "offset": 0, "length": 5}


class OddAgent(StandInAgent):
    """Serves every stream in the same way, whatever it is for."""

    def __init__(self) -> None:
        super().__init__()
        self.serve: Serve = lambda io: None

    def accept(self, stream: Stream, target: dict[str, Any]) -> None:
        """A stream was opened."""

        def run(io: StreamIO) -> None:
            try:
                self.serve(io)
            except StreamReset as reset:
                self.resets.append(reset.code)

        gevent.spawn(run, StreamIO(stream))


@pytest.fixture
def agent() -> OddAgent:
    return OddAgent()


@pytest.fixture
def client(agent: OddAgent) -> Iterator[Client]:
    with gevent.Timeout(15):
        router = StandInRouter(agent)
        router.config = RouterConfig.model_validate(
            {"control": {"response_timeout": 0.2, "hosts": ["falconframework.org"]}}
        )
        yield Client(create_app(router, router.config, router.gate))  # type: ignore[arg-type]
        wait_for(lambda: router.loopback.open_streams == 0)


def telling(*maps: dict[str, Any]) -> Serve:
    def serve(io: StreamIO) -> None:
        for told in maps:
            io.write_preface(told)
        io.close()

    return serve


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in READ.items() if key != name}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("preface", "told"),
    [
        *((without(name), f"has no {name}") for name in ("size", "mtime_ns", "etag", "offset", "length")),
        (READ | {"size": {}}, "its size is {}"),
        (READ | {"size": -1}, "its size is -1"),
        (READ | {"size": True}, "its size is True"),
        (READ | {"mtime_ns": "now"}, "its mtime_ns is 'now'"),
        (READ | {"etag": 'x"\r\nSet-Cookie: a=b'}, "its etag is"),
        (READ | {"etag": b"x"}, "its etag is b'x'"),
        (READ | {"length": 9}, "other bytes"),
        (READ | {"offset": 3}, "other bytes"),
        ({"ok": 5}, "needs ok or error"),
        ({"error": "text"}, "needs ok or error"),
    ],
)
def test_an_answer_that_makes_no_sense_is_the_agents_error(
    client: Client, agent: OddAgent, caplog: pytest.LogCaptureFixture, preface: dict[str, Any], told: str, method: str
) -> None:
    agent.serve = telling(preface)
    with caplog.at_level(logging.INFO):
        result = client.simulate_request(method, f"{PATH}/file/a")
    assert result.status_code == 502
    if method == "GET":
        assert told in result.json["detail"]
        assert result.json["code"] == "protocol_error"
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    ("method", "path", "maps"),
    [
        ("GET", "/archive", [{"ok": True, "size": "much"}]),
        ("GET", "/logs/stdout", [{"ok": True}]),
        ("GET", "/logs/stdout", [{"ok": True, "offset": {}}]),
        ("POST", "/file/d?directory=1", [{"ok": True}]),
        ("POST", "/file/f", [{"ok": True}, {"ok": True, "size": 0}]),
        ("POST", "/file/f", [{"ok": True}, {"ok": True, "etag": 5}]),
        ("POST", "/file/f", [{"ok": True}]),
        ("GET", "/file/f", []),
    ],
)
def test_so_are_those_to_other_requests(
    client: Client, agent: OddAgent, method: str, path: str, maps: list[dict[str, Any]]
) -> None:
    agent.serve = telling(*maps)
    result = client.simulate_request(method, PATH + path)
    assert (result.status_code, result.json["code"]) in [(502, "protocol_error"), (502, "truncated")]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/file/a"),
        ("HEAD", "/file/a"),
        ("DELETE", "/file/a"),
        ("POST", "/file/a"),
        ("POST", "/file/d?directory=1"),
        ("GET", "/archive"),
        ("POST", "/archive"),
        ("GET", "/logs/stdout"),
        ("GET", "/logs/stdout?follow=1"),
    ],
)
def test_an_agent_that_never_answers_is_given_up(client: Client, agent: OddAgent, method: str, path: str) -> None:
    result = client.simulate_request(method, PATH + path)
    assert result.status_code == 504
    if method != "HEAD":
        assert result.json["code"] == "agent_timeout"
        assert "did not reply within 0.2 s" in result.json["detail"]


def begun(told: dict[str, Any]) -> Serve:
    """One that says so much of an answer, and nothing more."""

    def serve(io: StreamIO) -> None:
        io.write_preface({**READ, **told})
        io.write_all(b"{}")

    return serve


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/file/a", {}),
        ("/file/a?remove=1", {}),
        ("/file/d/", {}),
        ("/archive", {"size": 1000}),
        ("/archive", {"size": None}),
        ("/logs/stdout", {"size": 1000}),
    ],
)
def test_an_agent_that_stops_in_the_middle_is_given_up(
    client: Client, agent: OddAgent, path: str, told: dict[str, Any]
) -> None:
    agent.serve = begun(told)
    with pytest.raises(AgentTimeout):  # With which a server cuts the connection.
        client.simulate_get(PATH + path)


def test_a_log_that_is_followed_may_pause(client: Client, agent: OddAgent) -> None:
    def serve(io: StreamIO) -> None:
        io.write_preface(READ)
        io.write_all(b"one ")
        gevent.sleep(0.5)
        io.write_all(b"two")
        io.close()

    agent.serve = serve
    assert client.simulate_get(f"{PATH}/logs/stdout?follow=1").text == "one two"


def test_an_agent_that_takes_no_more_of_an_upload_is_given_up(client: Client, agent: OddAgent) -> None:
    agent.serve = lambda io: io.write_preface({"ok": True})
    result = client.simulate_post(f"{PATH}/file/a", body=bytes(3 * 1024 * 1024))
    assert result.status_code == 504


def test_an_agents_error_cannot_put_anything_into_the_answers_head(client: Client, agent: OddAgent) -> None:
    error = {
        "type": [],
        "code": "a\r\nSet-Cookie: b=c",
        "detail": {"x": 1},
        "retry_after": "soon",
        "job": 5,
        "state": [],
    }
    agent.serve = telling({"error": error})
    result = client.simulate_get(f"{PATH}/file/a")
    assert result.status_code == 500
    assert result.headers["x-prouter-error"] == "internal"
    assert "set-cookie" not in result.headers


@pytest.mark.parametrize("retry_after", [float("nan"), float("inf"), -1, True, 1e300, "1", None])
def test_an_error_keeps_only_what_is_of_the_right_kind(retry_after: object) -> None:
    error = from_wire({"type": "NotFound", "code": "gone", "detail": "x", "retry_after": retry_after, "job": "j"})
    assert isinstance(error, PRouterError)
    assert (error.code, error.job, error.retry_after) == ("gone", "j", None)


def test_an_agent_that_says_too_much_is_told_of_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    def serve(stream: Stream, _target: object) -> None:
        io = StreamIO(stream)

        def run() -> None:
            io.write_preface({"ok": True, "size": 1})
            io.write_all(b"hello" * 20_000)

        gevent.spawn(run)

    router = StandInRouter()
    router.loopback = Loopback(serve)
    with gevent.Timeout(15), StandInServer(router) as server:
        client = server.connect(f"GET {PATH}/archive HTTP/1.1")
        while client.recv(65536):
            pass
        client.close()
    (told,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "the agent sent more bytes than it announced" in told.getMessage()
    assert not told.exc_info
