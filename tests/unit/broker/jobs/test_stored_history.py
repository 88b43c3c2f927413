"""Ended jobs that only the database has: lists, lookups, changes, bounds, and a database that cannot be read."""

from __future__ import annotations

import gc
import sqlite3
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prouter.broker.creations.claims import shared_key
from prouter.broker.jobs.entry import Entry
from prouter.broker.jobs.listing import cursor_after, list_page
from prouter.broker.jobs.stored_history import HISTORY_INDEXES, JOB_COLUMNS, StoredHistory
from prouter.broker.store.database import connect, open_to_read
from prouter.broker.store.opening import open_store
from prouter.errors import InvalidRequest, Overloaded
from prouter.fabric.frames import pack_body
from prouter.jobs import JobRecord, Reason, State
from tests.support.broker_world import BY_UID, Agent, Worker, World, created, job_on, listed, restarted

Job = tuple[int, int, str, str | None, str]
"""Number, time of creation, name, owner, and what becomes of it."""

JOBS: st.SearchStrategy[list[Job]] = st.lists(
    st.tuples(
        st.integers(0, 9),
        st.integers(0, 3),
        st.sampled_from(["a", "b"]),
        st.sampled_from([None, "ann", "bob"]),
        st.sampled_from(["runs", "ended", "removed", "forgotten"]),
    ),
    max_size=12,
    unique_by=lambda job: job[0],
)
STATES: tuple[list[str], ...] = ([], ["FINISHED"], ["CLOSED"], ["RUNNING", "CLOSED"], ["FINISHED", "CLOSED"])


def ended(number: int, connection: str, **fields: Any) -> JobRecord:
    return JobRecord(f"{number:032x}", connection, "job", State.RUNNING, 1, created_at=5.0, **fields)


def live(world: World, agent: Agent, job: Job) -> None:
    """Have the broker hear what happens to a job."""
    number, at, name, owner, fate = job
    record = replace(ended(number, agent.connection, owner=owner), name=name, created_at=at / 4)
    ledger = world.broker.ledger
    entry = ledger.apply(record, "agent-1")
    assert entry is not None
    if fate != "runs":
        ledger.apply(replace(record, state=State.FINISHED, revision=2, reason=Reason.EXITED), "agent-1")
    if fate == "removed":
        ledger.close(entry, entry.last_record, "")
    if fate == "forgotten":
        ledger.forget(entry)


@settings(max_examples=60, deadline=None)
@given(JOBS, JOBS, st.integers(1, 4))
def test_lists_are_the_same_wherever_their_jobs_are(earlier: list[Job], later: list[Job], limit: int) -> None:
    world = World()
    agent = world.agent()
    for job in earlier:
        live(world, agent, job)
    world.settle()
    assert all(not entry.ended for entry in world.broker.ledger.table), "only the database has the others"
    known = {job[0]: job for job in earlier}
    for job in later:
        if job[0] not in known:  # These are not written yet.
            live(world, agent, job)
            known[job[0]] = job
    table = world.broker.ledger.table
    told = {"runs": "RUNNING", "ended": "FINISHED", "removed": "CLOSED"}
    shown = {f"{job[0]:032x}": (told[job[4]], job) for job in known.values() if job[4] != "forgotten"}
    for states, name, owner, place in product(STATES, (None, "a"), (None, "ann"), (None, "agent-1")):
        expected = [
            uid
            for uid, (state, job) in sorted(shown.items(), key=lambda one: (one[1][1][1], one[0]), reverse=True)
            if (state in states if states else state != "CLOSED") and name in (None, job[2]) and owner in (None, job[3])
        ]
        found: list[str] = []
        cursor = None
        while True:
            page, cursor = list_page(
                table, states=states, agent=place, name=name, owner=owner, limit=limit, cursor=cursor
            )
            assert len(page) <= limit
            found += [entry.uid for entry in page]
            if cursor is None:
                break
            assert cursor == cursor_after(page[-1])
        assert found == expected
    states_told = [state for state, _ in shown.values()]
    assert {state: count for state, count in table.tally.states.items() if count} == {
        state: states_told.count(state) for state in set(states_told)
    }


@pytest.mark.parametrize("cursor", ["", "x", "1", "-5", "9" * 50 + "-a"])
def test_a_cursor_of_somebody_else_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidRequest):
        list_page(World().broker.ledger.table, cursor=cursor)


def test_a_cursor_beyond_all_jobs_begins_with_the_newest() -> None:
    world = World()
    finish(world.worker(), world.agent())
    assert len(list_page(world.broker.ledger.table, cursor="9" * 20 + "-a")[0]) == 1


def finish(worker: Worker, agent: Agent, key: str = "key-1", **fields: Any) -> dict[str, Any]:
    """A job that has ended."""
    job = job_on(worker, key=key)
    agent.change(job["uid"], state=State.FINISHED, reason=Reason.EXITED, exit_code=3, **fields)
    return job


def test_a_job_that_has_ended_is_the_same_object_for_all_who_hold_it() -> None:
    world = World()
    uid = finish(world.worker(), world.agent())["uid"]
    table = world.broker.ledger.table
    held = table.get(uid)
    assert held is not None
    assert list(table) == []
    table._recent.clear()
    gc.collect()
    assert table.get(uid) is held
    assert list_page(table)[0][0] is held
    world.broker.ledger.close(held, held.last_record, "call")
    assert table.get(uid) is held
    assert list(table) == [held], "the database does not have it yet"
    world.settle()
    assert list(table) == []
    assert held.removed


def test_a_job_that_was_lost_runs_again_after_it_was_only_in_the_database() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    job = job_on(worker)
    agent.change(job["uid"], state=State.RUNNING)
    world.vanish(agent)
    world.run(60, step=1)
    assert [info["reason"] for info in listed(worker)] == ["agent_lost"]
    assert list(world.broker.ledger.table) == []
    back = agent.again(2)
    world.join(back)
    assert [(info["state"], info["uid"]) for info in listed(worker)] == [("RUNNING", job["uid"])]
    assert world.broker.ledger.table.live(agent.connection) == {job["uid"]}


def test_a_key_that_gave_a_job_at_another_router_gives_it_here_after_it_has_ended() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    told = ended(99, agent.connection, key=shared_key("key-1"), digest="d")
    for record in (told, replace(told, state=State.FINISHED, revision=2, reason=Reason.EXITED)):
        agent.notify("job", record=record.to_wire())
    assert list(world.broker.ledger.table) == []
    world.broker.ledger.table._recent.clear()
    about: dict[str, Any] = {"name": "job", "agent": BY_UID, "digest": "d"}
    assert created(worker, worker.call("jobs.create", **about, key="key-1"))["uid"] == told.uid
    assert created(worker, worker.call("jobs.create", **about, key="key-2"))["uid"] != told.uid


def test_what_another_call_asked_to_remove_is_closed_when_its_agent_has_it_no_more() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    uid = finish(worker, agent)["uid"]
    agent.silent = True
    worker.call("jobs.remove", connection=agent.connection, job=uid)
    again = restarted(world)
    assert list(again.broker.ledger.table) == []
    back = agent.again(2)
    back.world, back.jobs = again, {}
    again.join(back)
    assert again.broker.ledger.find("", uid).removed


def test_a_history_that_is_full_forgets_what_ended_first() -> None:
    world = World(history=3)
    worker, agent = world.worker(), world.agent()
    uids = [finish(worker, agent, f"key-{number}")["uid"] for number in range(8)]
    world.run(1)
    assert [info["uid"] for info in listed(worker)] == uids[:4:-1]
    again = restarted(world, history=1)
    again.run(1)
    assert [info["uid"] for info in listed(again.worker())] == uids[-1:]
    assert again.broker.stats(again.now)["jobs.FINISHED"] == 1


def test_a_history_that_cannot_be_read_is_no_reason_to_say_that_there_is_no_job() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    ended_job = finish(worker, agent)["at"]
    runs = job_on(worker, key="key-2")["at"]
    table = world.broker.ledger.table
    table._recent.clear()
    gc.collect()
    database = table.history._database
    table.history._database = sqlite3.connect(":memory:")
    with pytest.raises(Overloaded):
        worker.ask("jobs.info", **ended_job)
    with pytest.raises(Overloaded):
        worker.ask("jobs.list")
    assert worker.ask("jobs.info", **runs)["job"]["state"] == "NEW"
    assert [info["state"] for info in listed(worker, states=["NEW"])] == ["NEW"]
    table.history._database = database
    assert worker.ask("jobs.info", **ended_job)["job"]["exit_code"] == 3
    assert len(listed(worker)) == 2


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "router.sqlite"


def test_every_query_follows_an_index(path: Path) -> None:
    database = connect(path)
    fill(database, 500)
    seen: list[str] = []
    reading = open_to_read(path)
    reading.set_trace_callback(seen.append)
    history = StoredHistory(reading)
    for owner, agent, name in product((None, "o"), (None, "agent-1"), (None, "n")):
        list(history.newest(State.FINISHED, owner, agent, name, (10**18, "x")))
    history.get("0")
    list(history.with_key("k"))
    list(history.oldest(0.0))
    history.to_remove("c")
    history.totals()
    assert history.readable
    assert len(seen) == 13
    for query in seen:
        plan = " ".join(detail for *_, detail in database.execute(f"EXPLAIN QUERY PLAN {query}"))
        assert "USING" in plan, (query, plan)
        assert "TEMP B-TREE" not in plan, (query, plan)
        assert "SCAN" not in plan.replace("SCAN jobs USING INDEX jobs_totals", ""), (query, plan)
    database.close()


def fill(database: sqlite3.Connection, count: int) -> None:
    """Write so many ended jobs."""
    marks = ",".join("?" * 14)
    database.executemany(
        f"INSERT INTO jobs ({JOB_COLUMNS}, event, size, created) VALUES ({marks})", map(row, range(count))
    )
    database.commit()


def row(number: int) -> tuple[Any, ...]:
    record = replace(ended(number, "c"), state=State.FINISHED)
    packed = Entry.heard(record, "agent-1").packed
    return (record.uid, "c", "agent-1", "n", 5.0, "FINISHED", 1, 0, "", 6.0, packed, 0, len(packed), 5_000_000)


def test_jobs_of_an_earlier_version_are_found_by_owner_and_key(path: Path) -> None:
    database = connect(path)
    for statement in HISTORY_INDEXES:
        database.execute(f"DROP INDEX {statement.split()[5]}")
    database.execute("DROP INDEX jobs_incomplete")
    for column in ("created", "size", "owner", "key"):
        database.execute(f"ALTER TABLE jobs DROP COLUMN {column}")
    owned = replace(ended(1, "c", owner="ann", key="k"), state=State.FINISHED).to_wire()
    values = [*row(1)[:10], pack_body(owned), 7]
    marks = ",".join("?" * len(values))
    database.execute(f"INSERT INTO jobs ({JOB_COLUMNS}, event) VALUES ({marks})", values)
    database.commit()
    database.close()
    for _ in range(2):
        history = open_store(path).history
        (found,) = history.newest(State.FINISHED, "ann", None, None, None)
        assert (found.uid, found.owner) == (f"{1:032x}", "ann")
        assert [entry.uid for entry in history.with_key("k")] == [found.uid]
        assert history.totals() == [("c", "FINISHED", 1, found.size)]
        history.close()


def test_of_a_damaged_history_what_can_be_read_is_there(path: Path) -> None:
    database = connect(path)
    fill(database, 2000)
    database.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 4096 // 4 * 4096)
        file.write(b"\xff" * 4096)
    history = StoredHistory(open_to_read(path))
    found = [entry.uid for entry in history.all()]
    assert found == sorted(set(found))
    assert 1000 < len(found) < 2000
    assert found[-1] == f"{1999:032x}", "what comes after the damage is there, too"
    history.close()
    assert list(history.all()) == []
    assert not history.readable
