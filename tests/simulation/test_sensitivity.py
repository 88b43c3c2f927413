"""The simulation notices faults: without one piece of the protocol, a schedule fails soon."""

from __future__ import annotations

from typing import Any

import pytest

from prouter.broker.jobs.ledger import Ledger
from prouter.broker.jobs.replies import Replies
from prouter.broker.jobs.waits import Waits
from prouter.fabric.calls import Responder
from prouter.fabric.frames import Frame
from prouter.fabric.mux import Mux
from prouter.fabric.retries import Retries
from prouter.fabric.stream import Stream
from prouter.transport.streams import Streams
from tests.simulation.nodes import WorkerNode
from tests.simulation.schedule import run

_LIVES = 400


def _fails(seeds: range = range(_LIVES)) -> bool:
    for seed in seeds:
        try:
            run(seed)
        except Exception:
            return True
    return False


def test_streams_that_do_not_repeat_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "resend_from", lambda self, position: [])
    assert _fails()


def test_calls_that_are_not_repeated_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Retries, "path_up", lambda self, now: [])
    assert _fails()


def test_ended_streams_that_are_forgotten_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(self: Mux, frame: Frame, events: Any) -> None:
        if frame.type == 32:
            self._accept(frame, events)

    monkeypatch.setattr(Mux, "_receive_unknown", forgetful)
    assert _fails()


def test_answers_that_are_not_remembered_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    remembered = Responder.receive

    def forgetful(self: Responder, frame: Frame) -> Any:
        self._replies.clear()
        self._running.clear()
        return remembered(self, frame)

    monkeypatch.setattr(Responder, "receive", forgetful)
    assert _fails()


def test_answers_before_they_are_written_down_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "when_written", lambda self, done: done(self._env.now))
    assert _fails()


def test_replies_that_do_not_wait_for_their_records_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Replies, "arrived", lambda self, uid, now: None)
    assert _fails()


def test_replies_of_agents_that_are_gone_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Replies, "link_gone", lambda self, link, reason, now: None)
    monkeypatch.setattr(Replies, "_too_late", lambda self, uid, now: None)
    assert _fails()


def test_waits_that_are_left_over_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Waits, "_go_on", lambda self, job, now: None)
    assert _fails()


def test_waits_of_clients_that_left_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Waits, "cancel", lambda self, worker, call_id: False)
    assert _fails()


def test_jobs_that_their_agent_does_not_know_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    lose = Ledger.lose

    def only_with_their_agent(self: Ledger, connection: str, uids: set[str], reason: str) -> None:
        if reason != "it knows nothing of the job":
            lose(self, connection, uids, reason)

    monkeypatch.setattr(Ledger, "lose", only_with_their_agent)
    assert _fails()


def test_streams_taken_to_a_restarted_agent_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WorkerNode, "_meet", lambda self, link: None)
    assert _fails()


def test_streams_opened_again_after_they_were_given_up_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Streams.mux

    def forgetful(self: Streams, route: bytes) -> Mux:
        self._floors.clear()
        return known(self, route)

    monkeypatch.setattr(Streams, "mux", forgetful)
    assert _fails(range(950, 960))  # one life in a thousand; 957 is one


def test_streams_meant_for_the_process_before_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mux, "_meant_for_us", lambda self, frames: frames)
    assert _fails(range(1350, 1360))  # one life in two thousand; 1351 is one
