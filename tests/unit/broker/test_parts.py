"""The broker's parts one by one: timers, events, the index of jobs, lag."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.broker.base.lag import Lag
from prouter.broker.base.timers import Timers
from prouter.broker.jobs.events import EventLog
from prouter.broker.jobs.index import JobIndex, Listed
from prouter.broker.links.hello import AgentInfo, connection_uid
from prouter.errors import ProtocolError
from prouter.jobs import rfc3339
from prouter.tokens import Tokens


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans())))
def test_timers_run_in_order_and_only_once(wanted: list[tuple[int, bool]]) -> None:
    timers = Timers()
    ran: list[int] = []

    def note(at: int) -> Callable[[float], None]:
        return lambda now: ran.append(at)

    made = [(timers.at(float(at), note(at)), cancel) for at, cancel in wanted]
    for timer, cancel in made:
        if cancel:
            timer.cancel()
            timer.cancel()
    expected = sorted(at for at, cancel in wanted if not cancel)
    assert len(timers) == len(expected)
    for now in range(21):
        deadline = timers.deadline()
        rest = [at for at in expected if at >= now]
        assert deadline == (rest[0] if rest else None)
        timers.run(float(now))
    assert ran == expected
    assert len(timers) == 0


def test_a_timer_may_cancel_and_make_others() -> None:
    timers = Timers()
    ran: list[str] = []
    victim = timers.at(2.0, lambda now: ran.append("victim"))

    def first(now: float) -> None:
        victim.cancel()
        timers.at(now, lambda now: ran.append("next"))

    timers.at(1.0, first)
    timers.run(2.0)
    assert ran == []
    timers.run(2.0)
    assert ran == ["next"]
    assert len(timers) == 0


def test_a_timer_that_fails_costs_no_other_its_turn() -> None:
    timers = Timers()
    ran: list[str] = []

    def fail(now: float) -> None:
        raise RuntimeError("of this test")

    timers.at(1.0, fail)
    last = timers.at(2.0, lambda now: ran.append("cancelled"))
    timers.at(3.0, lambda now: ran.append("late"))
    timers.at(2.5, lambda now: ran.append("early"))
    with pytest.raises(RuntimeError, match="of this test"):
        timers.run(5.0)
    last.cancel()
    assert len(timers) == 2
    timers.run(5.0)
    assert ran == ["early", "late"]
    assert timers.deadline() is None


def test_many_cancelled_timers_take_no_room() -> None:
    timers = Timers()
    for _ in range(10_000):
        timers.at(1e9, print).cancel()
    assert len(timers._heap) < 200


JOBS = st.lists(
    st.tuples(
        st.integers(0, 8),
        st.integers(0, 3),
        st.sampled_from(["NEW", "RUNNING", "FINISHED", "CLOSED"]),
        st.sampled_from(["a", "b"]),
        st.sampled_from(["x", "y"]),
    )
)
FILTERS = st.tuples(
    st.lists(st.sampled_from(["NEW", "RUNNING", "FINISHED", "CLOSED"]), max_size=2, unique=True),
    st.sampled_from([None, "a", "b"]),
    st.sampled_from([None, "x", "y"]),
)


@given(JOBS, st.sets(st.integers(0, 8)), FILTERS, st.integers(1, 4))
def test_the_index_gives_every_match_once_newest_first(
    puts: list[tuple[Any, ...]], removed: set[int], filters: tuple[list[str], str | None, str | None], limit: int
) -> None:
    index = JobIndex()
    known: dict[str, Listed] = {}
    for number, created, state, agent, name in puts:
        known[f"job-{number}"] = job = Listed(created, f"job-{number}", state, agent, name)
        index.put(job)
    for number in removed:
        index.remove(f"job-{number}")
        known.pop(f"job-{number}", None)
    states, agent, name = filters
    matching = [
        job
        for job in known.values()
        if (job.state in states if states else job.state != "CLOSED")
        and agent in (None, job.agent)
        and name in (None, job.name)
    ]
    expected = [job.uid for job in sorted(matching, key=lambda job: job.key, reverse=True)]
    found: list[str] = []
    before = None
    while page := list(islice(index.newest(states, None, agent, name, before), limit)):
        found += [job.uid for job in page]
        before = page[-1].key
    assert found == expected
    assert len(index) == len(known)
    again = JobIndex()
    again.load(list(known.values()))
    assert again._order == index._order


def test_event_ids_grow_over_restarts_and_clocks_that_go_back() -> None:
    log = EventLog(3, 0, 1000.0)
    ids = [log.append("job", {"n": n}, 1000.0)[0]["id"] for n in range(5)]
    assert ids == sorted(set(ids))
    assert log.first == ids[2]
    assert log.last == ids[4]
    assert [event["id"] for event in log.after(None, 2)] == ids[3:]
    assert [event["id"] for event in log.after(ids[2], 1)] == ids[3:4]
    assert [event["id"] for event in log.after(0, 10)] == ids[2:]
    assert log.after(ids[4], 10) == []
    assert EventLog(3, log.last, 10.0).append("job", {}, 0.0)[0]["id"] > log.last
    assert EventLog(3, log.last, 2000.0).append("job", {}, 0.0)[0]["id"] > log.last


def test_an_event_log_goes_on_with_the_events_of_the_one_before() -> None:
    log = EventLog(3, 0, 1000.0)
    kept = [(told["id"], packed) for told, packed in (log.append("job", {"n": n}, 0.0) for n in range(5))][-3:]
    again = EventLog(3, log.last, 1000.0, kept=kept)
    assert again.first == kept[0][0]
    assert [event["body"]["n"] for event in again.after(kept[0][0], 10)] == [3, 4]
    assert [event["body"]["n"] for event in again.after(kept[1][0] + 500, 10)] == [], "what was not saved is skipped"
    again.append("job", {"n": 5}, 0.0)
    assert [event["body"]["n"] for event in again.after(kept[1][0], 10)] == [4, 5]
    assert again.first == kept[1][0]


def test_an_event_log_is_bounded_in_bytes_too() -> None:
    log = EventLog(100, 0, 0.0, most_bytes=10_000)
    for number in range(50):
        log.append("job", {"args": "x" * 1000, "number": number}, 0.0)
    assert (len(log), log.first, log.last) == (9, 42, 50)
    assert [event["body"]["number"] for event in log.after(None, 100)] == list(range(41, 50))
    log.append("job", {"args": "x" * 20_000}, 0.0)
    assert (len(log), log.first) == (1, log.last), "the newest is kept whatever its size"


def test_an_empty_event_log_begins_with_the_next_event() -> None:
    log = EventLog(3, 0, 1.0)
    assert log.first == log.last + 1
    assert log.append("job", {}, 0.0)[0]["id"] == log.last == log.first


@given(st.lists(st.text(min_size=1)), st.one_of(st.none(), st.integers(), st.text()))
def test_a_token_is_accepted_when_it_is_one_of_them(tokens: list[str], presented: object) -> None:
    assert (Tokens(tokens).mark("agent-1", presented) is not None) == (not tokens or presented in tokens)


@given(st.dictionaries(st.sampled_from("abc"), st.text(min_size=1), min_size=1), st.sampled_from("abcd"), st.text())
def test_a_token_of_ones_own_is_of_no_use_to_others(tokens: dict[str, str], uid: str, presented: str) -> None:
    assert (Tokens(tokens).mark(uid, presented) is not None) == (tokens.get(uid) == presented)


def test_the_mark_of_a_token_does_not_tell_it() -> None:
    marks = [Tokens(["first-token", "other-token"]).mark("a", token) for token in ("first-token", "other-token")]
    assert len(set(marks)) == 2
    assert all(mark is not None and len(mark) == 8 for mark in marks)
    assert Tokens().mark("a", "anything") == ""


@pytest.mark.parametrize("mode", ["SERVER", "CLIENT"])
def test_the_name_of_a_connection_does_not_tell_its_agents_incarnation(mode: str) -> None:
    incarnation = "0123456789abcdef" * 2
    name = connection_uid(incarnation, mode)
    assert len(name) == 32
    others = {connection_uid("f" * 32, mode), connection_uid(incarnation, "SERVER" if mode == "CLIENT" else "CLIENT")}
    assert name not in {incarnation, *others}
    assert connection_uid(name, mode) not in {name, *others}


@pytest.mark.parametrize("value", [b"bytes", {"deep": [b"bytes"]}, {b"key": 1}, float("nan"), [[float("inf")]]])
def test_an_agent_says_only_what_json_can_say(value: object) -> None:
    hello = {"uid": "a", "incarnation": "0" * 32, "properties": {"name": value}}
    with pytest.raises(ProtocolError, match="properties must hold what JSON can say"):
        AgentInfo.from_hello(hello)


def test_times_are_utc_with_milliseconds() -> None:
    assert rfc3339(0.25) == "1970-01-01T00:00:00.250Z"
    assert rfc3339(1_700_000_000.9999996) == "2023-11-14T22:13:21.000Z"
    assert rfc3339(1_700_000_000.1239) == "2023-11-14T22:13:20.123Z"


def test_the_longest_turn_is_shown_for_a_while() -> None:
    lag = Lag()
    lag.iterated(100.0, 100.5)
    lag.iterated(101.0, 101.001)
    assert lag.longest == 0.5
    lag.iterated(111.0, 111.001)
    assert lag.longest == 0.5
    lag.iterated(122.0, 122.001)
    lag.iterated(133.0, 133.001)
    assert lag.longest < 0.01
    assert lag.iterations == 5
