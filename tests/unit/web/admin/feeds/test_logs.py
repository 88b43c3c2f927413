"""Logs over HTTP: plain text and events, followed over broken connections, with an end that is certain."""

from __future__ import annotations

import base64
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import falcon.testing
import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.web.admin.app import create_app
from prouter.web.admin.feeds.log_tail import LogTail, TailPosition
from prouter.web.admin.resources import logs
from prouter.web.admin.resources.logs import EventLog, utf8_runs
from tests.support.api_stand import CONNECTION, JOB, PATH, StandInRouter, StandInServer, job_info
from tests.support.loopback import wait_for

Client = falcon.testing.TestClient
LOG = f"{PATH}/logs/stdout"
SSE = {"Accept": "text/event-stream"}


@pytest.fixture
def router() -> Iterator[StandInRouter]:
    with gevent.Timeout(15):
        router = StandInRouter()
        router.agent.log = b"one\ntwo\nthree\n"
        router.answers["jobs.wait"] = {"job": job_info(state="FINISHED", exit_code=3, reason="exited"), "ended": True}
        yield router
        wait_for(lambda: router.loopback.open_streams == 0)


@pytest.fixture
def client(router: StandInRouter) -> Client:
    return Client(create_app(router, router.config, router.gate))  # type: ignore[arg-type]


def events(text: str) -> list[dict[str, Any]]:
    """Server-sent events as maps of ``id``, ``event`` and ``data``; comments and retry left out."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "event" in fields:
            found.append({**fields, "data": json.loads(fields["data"])})
    return found


def content(found: list[dict[str, Any]]) -> bytes:
    """The log's bytes out of its events, each checked to begin where the one before ended."""
    log = b""
    for event in found:
        if event["event"] == "log":
            data = event["data"]
            assert data["offset"] == len(log)
            log += data["text"].encode() if "text" in data else base64.b64decode(data["base64"])
            assert int(event["id"]) == len(log)
    return log


@given(st.lists(st.one_of(st.text().map(str.encode), st.binary(max_size=8))).map(b"".join))
def test_runs_are_the_bytes_in_order(data: bytes) -> None:
    runs, rest = utf8_runs(data)
    assert joined(runs) + rest == data
    assert all(runs)
    assert len(rest) < 4


def joined(runs: list[str | bytes]) -> bytes:
    return b"".join(run.encode() if isinstance(run, str) else run for run in runs)


@pytest.mark.parametrize(
    ("data", "runs", "rest"),
    [
        (b"", [], b""),
        ("grün".encode(), ["grün"], b""),
        (b"a\xffb", ["a", b"\xff", "b"], b""),
        (b"\xff\xfe", [b"\xff\xfe"], b""),
        (b"a\xe2\x82", ["a"], b"\xe2\x82"),
        (b"a\xe2\x28b", ["a", b"\xe2", "(b"], b""),
        (b"\xed\xb2\x80", [b"\xed\xb2\x80"], b""),
        (b"a\xc0\x80b", ["a", b"\xc0\x80", "b"], b""),
    ],
)
def test_only_bad_bytes_are_no_text(data: bytes, runs: list[str | bytes], rest: bytes) -> None:
    assert utf8_runs(data) == (runs, rest)


def test_one_bad_byte_leaves_the_rest_of_a_large_piece_text() -> None:
    runs, _ = utf8_runs(b"x" * 40000 + b"\xff" + b"y" * 20000)
    assert runs == ["x" * 40000, b"\xff", "y" * 20000]


def test_binary_data_become_few_events() -> None:
    data = random.Random(1).randbytes(65536)
    runs, rest = utf8_runs(data)
    assert len(runs) < 100
    assert joined(runs) + rest == data


def test_every_id_of_a_log_with_bad_bytes_resumes_exactly(client: Client, router: StandInRouter) -> None:
    router.agent.log = b"one\n\xff\xfetwo \xe2\x82\xac\n" * 3 + b"\xe2"
    found = events(client.simulate_get(LOG, headers=SSE).text)
    assert content(found) == router.agent.log
    assert sum("base64" in event["data"] for event in found) == 4
    for event in found[:-1]:
        again = events(client.simulate_get(LOG, headers={**SSE, "Last-Event-ID": event["id"]}).text)
        told = [one["data"] for one in again if one["event"] == "log"]
        rest = b"".join(one["text"].encode() if "text" in one else base64.b64decode(one["base64"]) for one in told)
        assert rest == router.agent.log[int(event["id"]) :]


def test_a_whole_log(client: Client) -> None:
    result = client.simulate_get(LOG)
    assert result.content == b"one\ntwo\nthree\n"
    assert result.headers["content-type"] == "text/plain; charset=utf-8"
    assert result.headers["x-prouter-log-offset"] == "0"


def test_head_of_a_log_leaves_no_stream_open(client: Client) -> None:
    result = client.simulate_head(f"{LOG}?follow=1")
    assert (result.status_code, result.content) == (200, b"")
    assert result.headers["x-prouter-log-offset"] == "0"


def test_an_empty_last_event_id_is_none(client: Client) -> None:
    found = events(client.simulate_get(LOG, headers={**SSE, "Last-Event-ID": ""}).text)
    assert content(found) == b"one\ntwo\nthree\n"


def test_the_end_of_a_log(client: Client, router: StandInRouter) -> None:
    result = client.simulate_get(f"{LOG}?tail=2")
    assert (result.content, result.headers["x-prouter-log-offset"]) == (b"two\nthree\n", "4")
    result = client.simulate_get(f"{LOG}?offset=8")
    assert (result.content, result.headers["x-prouter-log-offset"]) == (b"three\n", "8")
    assert router.agent.targets[-1]["name"] == "stdout"


@pytest.mark.parametrize(
    "query",
    [
        *("tail=x", "offset=-1", "tail=1&offset=1", "follow=maybe", "since=12", "since=yesterday", "since=10w"),
        *("since=2030-13-31T12:00:00Z", "since=2030-01-31", "since=1h&offset=1"),
    ],
)
def test_wrong_queries_are_refused(client: Client, query: str) -> None:
    result = client.simulate_get(f"{LOG}?{query}")
    assert result.status_code == 400
    assert "Invalid request" in result.json["detail"]


@pytest.mark.parametrize(
    ("since", "moment"),
    [
        ("2030-01-31T12:00:00Z", 1896091200.0),
        ("2030-01-31T14:00:00+02:00", 1896091200.0),
        ("2030-01-31T14:00:00%2B02:00", 1896091200.0),
        ("2030-01-31t12:00:00.123456789z", 1896091200.123),
        ("1960-01-31T12:00:00Z", 0.0),
    ],
)
def test_times_are_those_of_rfc_3339(client: Client, router: StandInRouter, since: str, moment: float) -> None:
    assert client.simulate_get(LOG, query_string=f"since={since}").status_code == 200
    assert router.agent.targets[-1]["since"] == int(moment * 1000)


def test_an_age_is_counted_from_now(client: Client, router: StandInRouter) -> None:
    before = time.time()
    assert client.simulate_get(LOG, query_string="since=1.5h&tail=3").status_code == 200
    target = router.agent.targets[-1]
    assert target["tail"] == 3
    assert int((before - 5400) * 1000) <= target["since"] <= (time.time() - 5400) * 1000


def test_there_are_two_logs(client: Client) -> None:
    assert client.simulate_get(f"{PATH}/logs/stderr").status_code == 200
    assert client.simulate_get(f"{PATH}/logs/stdin").status_code == 404
    assert client.simulate_get(f"/jobs/{CONNECTION}/none/logs/stdout").status_code == 404


def test_a_follower_gets_what_is_written_later(client: Client, router: StandInRouter) -> None:
    router.agent.log_ends = False

    def write() -> None:
        wait_for(lambda: router.agent.targets)
        router.agent.log += b"four\n"
        gevent.sleep(0.01)
        router.agent.log += b"five\n"
        router.agent.log_ends = True

    gevent.spawn(write)
    assert client.simulate_get(f"{LOG}?follow=1").content == b"one\ntwo\nthree\nfour\nfive\n"


@pytest.mark.parametrize("headers", [{}, SSE])
def test_a_lost_path_is_not_the_end(client: Client, router: StandInRouter, headers: dict[str, str]) -> None:
    router.agent.log = bytes(range(97, 123)) * 40_000
    router.agent.log_cut_at = 700_001
    result = client.simulate_get(f"{LOG}?follow=1", headers=headers)
    got = result.content if not headers else content(events(result.text))
    assert got == router.agent.log
    first, second = [target["offset"] for target in router.agent.targets]
    assert first is None
    assert 0 <= second <= 700_001


def test_a_log_that_cannot_be_read_on_is_visibly_cut(router: StandInRouter) -> None:
    router.agent.log = bytes(1_000_000)
    router.agent.log_cut_at = 500_000
    router.agent.cut_code = "job_removed"
    with StandInServer(router) as server:
        client = server.connect(f"GET {LOG}?follow=1 HTTP/1.1\nConnection: close")
        with pytest.raises(ConnectionResetError):
            list(iter(lambda: client.recv(65536), b""))


def test_events_end_with_how_the_job_ended(client: Client) -> None:
    result = client.simulate_get(f"{LOG}?follow=1", headers=SSE)
    assert result.headers["content-type"] == "text/event-stream"
    found = events(result.text)
    assert content(found) == b"one\ntwo\nthree\n"
    end = found[-1]
    assert (end["event"], end["id"]) == ("end", "14.end")
    assert end["data"] == {
        "offset": 14,
        "state": "FINISHED",
        "exit_code": 3,
        "signal": None,
        "reason": "exited",
        "error": None,
    }


def test_events_resume_by_id(client: Client, router: StandInRouter) -> None:
    found = events(client.simulate_get(LOG, headers={**SSE, "Last-Event-ID": "8"}).text)
    assert found[0]["data"] == {"offset": 8, "text": "three\n"}
    assert router.agent.targets[-1]["offset"] == 8
    assert client.simulate_get(LOG, headers={**SSE, "Last-Event-ID": "14.end"}).status_code == 204
    assert client.simulate_get(LOG, headers={**SSE, "Last-Event-ID": "x"}).status_code == 400


def test_events_keep_every_byte(client: Client, router: StandInRouter) -> None:
    router.agent.log = "50 %\r100 %\r\n жаба \u2028 \x00".encode() + b"\xff\xfe" + "ж".encode()[:1]
    assert content(events(client.simulate_get(LOG, headers=SSE).text)) == router.agent.log


def test_a_character_in_two_pieces_becomes_one_event(router: StandInRouter) -> None:
    router.agent.log, router.agent.log_ends = "aж".encode()[:2], False
    tail = LogTail(router, CONNECTION, JOB, "stdout", TailPosition(None, None), follow=True)  # type: ignore[arg-type]
    log = EventLog(tail, lambda: False)
    next(log)
    assert events(next(log).decode())[0]["data"] == {"offset": 0, "text": "a"}
    router.agent.log, router.agent.log_ends = "aжb".encode(), True
    assert events(next(log).decode())[0] == {"id": "4", "event": "log", "data": {"offset": 1, "text": "жb"}}
    log.close()


def test_events_end_unfinished_while_the_router_drains(
    client: Client, router: StandInRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_PATIENCE", 0.01)
    router.agent.log_ends = False

    def drain() -> None:
        wait_for(lambda: router.agent.targets)
        router.draining = True

    gevent.spawn(drain)
    found = events(client.simulate_get(f"{LOG}?follow=1", headers=SSE).text)
    assert [event["event"] for event in found] in (["log"], [])
    router.agent.log_ends = True


def test_a_follower_that_leaves_frees_the_stream(router: StandInRouter) -> None:
    router.agent.log_ends = False
    with StandInServer(router) as server:
        client = server.connect(f"GET {LOG}?follow=1 HTTP/1.1")
        wait_for(lambda: router.agent.targets)
        client.recv(1000)
        client.close()
        wait_for(lambda: not router.loopback.worker.mux(b"agent").streams)
        router.agent.log_ends = True
