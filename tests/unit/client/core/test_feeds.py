"""Logs and events arrive whole, in order and once, wherever the connection is cut."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.client.core.errors import AgentUnavailable, ConnectionFailed, NotFound
from prouter.client.core.feeds import OPENED, EventsFeed, LogFeed, follow
from prouter.client.core.flow import Lost, Request
from tests.support.flow_player import Answer, FlowPlayer, context

CUT = Lost("reset")


def event(name: str, data: object, number: object = None) -> bytes:
    head = f"id: {number}\n" if number is not None else ""
    return f"{head}event: {name}\ndata: {json.dumps(data)}\n\n".encode()


class LogServer:
    """Serves a log in pieces, from any position, and cuts its answers where it is told to."""

    def __init__(self, log: bytes, piece: int, cuts: list[int]) -> None:
        self._log = log
        self._piece = piece
        self._cuts = iter(cuts)

    def __call__(self, request: Request) -> Answer | Lost:
        query = parse_qs(urlsplit(request.path).query)
        offset = int(query.get("offset", ["0"])[0])
        stream = b"retry: 2000\n\n: still here\n\n"
        for first in range(offset, len(self._log), self._piece):
            data = self._log[first : first + self._piece]
            shown = {"offset": first, "base64": base64.b64encode(data).decode()}
            stream += event("log", shown, first + len(data))
        stream += event("end", {"offset": len(self._log), "state": "FINISHED", "exit_code": 0}, f"{len(self._log)}.end")
        cut = next(self._cuts, None)
        if cut == 0:
            return Lost("refused", sent=False)
        pieces: tuple[bytes | Lost, ...] = (stream,) if cut is None else (stream[: cut % len(stream)], CUT)
        return Answer(200, {"x-prouter-log-offset": str(offset)}, pieces)


@given(st.binary(max_size=300), st.integers(1, 50), st.lists(st.integers(0, 2000), max_size=12))
def test_a_log_arrives_whole_over_all_cuts(log: bytes, piece: int, cuts: list[int]) -> None:
    player = FlowPlayer(LogServer(log, piece, [1, *cuts]))
    feed = LogFeed("/jobs/c/j", "stdout", follow=True, offset=None, tail=None)
    player.run(follow(context(), feed))
    assert b"".join(player.given) == log
    assert feed.ending["exit_code"] == 0


def test_what_the_agent_dropped_is_counted_and_its_line_is_a_piece_of_its_own() -> None:
    marker = b"[prouter: 70 bytes dropped]\n"
    shown = {"offset": 80 - len(marker), "base64": base64.b64encode(marker + b"later").decode()}
    answers = iter(
        [
            Answer(200, {"x-prouter-log-offset": "0"}, (event("log", {"offset": 0, "text": "0123456789"}, 10), CUT)),
            Answer(200, {"x-prouter-log-offset": "52"}, (event("log", shown, 85) + event("end", {"offset": 85}),)),
        ]
    )
    player = FlowPlayer(lambda _: next(answers))
    feed = LogFeed("/jobs/c/j", "stdout", follow=True, offset=0, tail=None)
    player.run(follow(context(), feed))
    assert player.given == [b"0123456789", marker, b"later"]
    assert (feed.dropped, feed.position) == (70, 85)


def test_a_log_that_begins_with_its_tail_continues_by_position() -> None:
    rest = (event("log", {"offset": 40, "text": "ü\n"}, 43), event("end", {}, "43.end"))
    first = Answer(200, {"x-prouter-log-offset": "40"}, (b"retry: 1\n\n", CUT))
    answers = iter([first, Answer(200, {}, rest)])
    player = FlowPlayer(lambda _request: next(answers))
    player.run(follow(context(), LogFeed("/jobs/c/j", "stderr", follow=True, offset=None, tail=1)))
    assert [request.path for request in player.requests] == [
        "/jobs/c/j/logs/stderr?follow=1&tail=1", "/jobs/c/j/logs/stderr?follow=1&offset=40",
    ]  # fmt: skip
    assert player.given == ["ü\n".encode()]


def test_bytes_that_come_twice_are_given_once() -> None:
    pieces = (event("log", {"offset": 0, "text": "abc"}, 3), event("log", {"offset": 1, "text": "bcd"}, 4))
    player = FlowPlayer(lambda _request: Answer(200, {}, (*pieces, event("end", {}))))
    player.run(follow(context(), LogFeed("/jobs/c/j", "stdout", follow=False, offset=0, tail=None)))
    assert b"".join(player.given) == b"abcd"


def test_a_log_that_cannot_be_read_on_is_an_error_and_a_passing_one_is_a_loss() -> None:
    gone = event("error", {"code": "agent_lost", "detail": "the agent is gone"})
    away = event("error", {"code": "agent_unavailable", "detail": "away"})
    answers = iter([Answer(200, {}, (away,)), Answer(200, {}, (gone,))])
    player = FlowPlayer(lambda _request: next(answers))
    with pytest.raises(AgentUnavailable, match="gone"):
        player.run(follow(context(), LogFeed("/jobs/c/j", "stdout", follow=True, offset=0, tail=None)))


def test_a_stream_that_worked_once_endures_a_long_outage_but_no_refusal() -> None:
    lost = [Lost("refused", sent=False)] * 300
    answers: Iterator[Answer | Lost] = iter(
        [Answer(200, {}, (CUT,)), *lost, Answer(404, {"x-prouter-error": "not_found"}, (b"{}",))]
    )
    player = FlowPlayer(lambda _request: next(answers))
    with pytest.raises(NotFound):
        player.run(follow(context(retry_for=5), LogFeed("/jobs/c/j", "stdout", follow=True, offset=0, tail=None)))
    assert player.moment > 500
    never = FlowPlayer(lambda _request: lost[0])
    with pytest.raises(ConnectionFailed):
        never.run(follow(context(retry_for=5), LogFeed("/jobs/c/j", "stdout", follow=True, offset=0, tail=None)))


def test_wrong_arguments_of_logs_are_refused() -> None:
    for stream, offset, tail in (("stdin", None, None), ("stdout", 1, 1)):
        with pytest.raises(ValueError, match=r"stdin|exclude"):
            LogFeed("/jobs/c/j", stream, follow=True, offset=offset, tail=tail)


class EventServer:
    """Serves events 1 to 30 after any id, 5 of which happened before, and cuts its answers."""

    def __init__(self, cuts: list[int]) -> None:
        self._cuts = iter(cuts)

    def __call__(self, request: Request) -> Answer | Lost:
        after = int(request.headers.get("Last-Event-ID", "5"))
        repeated = max(0, after - 1)  # a state may be told twice after a restart
        stream = b"retry: 2000\n\n" + b"".join(event("job", {"id": at}, at) for at in range(repeated + 1, 31))
        stream += event("dropped", {"reason": "slow", "after": 30}, 30)
        cut = next(self._cuts, None)
        pieces: tuple[bytes | Lost, ...] = (stream,) if cut is None else (stream[: cut % len(stream)], CUT)
        return Answer(200, {"x-prouter-last-event-id": str(after)}, pieces)


@given(st.lists(st.integers(0, 2000), max_size=12))
def test_events_have_neither_gaps_nor_repetitions(cuts: list[int]) -> None:
    player = FlowPlayer(EventServer([0, *cuts]), enough=26)
    player.run(follow(context(), EventsFeed(None), announce=True))
    assert player.given[0] is OPENED
    assert [one.id for one in player.given[1:]] == list(range(6, 31))


def test_events_that_the_router_has_no_more_are_told() -> None:
    stream = event("dropped", {"reason": "expired", "first": 90}, 89) + event("agent", {"change": "up"}, 90)
    player = FlowPlayer(lambda _request: Answer(200, {}, (stream,)), enough=2)
    feed = EventsFeed(3)
    player.run(follow(context(), feed))
    assert [(one.type, one.id) for one in player.given] == [("dropped", 89), ("agent", 90)]
    assert feed.last == 90
