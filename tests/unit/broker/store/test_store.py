"""The broker's database: writing, restarts, damage, a full disk."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from prouter.broker.jobs.entry import Entry
from prouter.broker.jobs.ledger import EVENTS
from prouter.broker.jobs.stored_history import JOB_COLUMNS
from prouter.broker.store.database import SCHEMA
from prouter.broker.store.opening import open_store
from prouter.broker.store.store import Store
from prouter.jobs import JobRecord, Reason, State
from tests.support.broker_world import World
from tests.support.processes import wait_until

BY_UID = {"type": "uid", "uid": "agent-1"}


class Wake:
    """Counts being woken."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self) -> None:
        self.event.set()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "router.sqlite"


def replay(world: World, path: Path) -> None:
    """Write what a broker without a store would have written."""
    open_store(path)
    store = Store(path, lambda: None)
    for statement, parameters in world.recorder.statements:
        store.submit(statement, *parameters)
    store.close()
    assert store.failures == 0


def test_a_restarted_broker_has_its_jobs_links_and_keys(path: Path) -> None:
    world = World()
    worker, agent = world.worker(), world.agent(properties={"colour": "blue"})
    paths = []
    for number in range(3):
        call = worker.call("jobs.create", name=f"job {number}", agent=BY_UID, key=f"key-{number}")
        paths.append(worker.results[call]["job"]["path"].split("/")[2:4])
    running, ended, removed = (uid for _, uid in paths)
    agent.change(running, state=State.RUNNING, pid=5, endpoint={"port": 80}, args=["a"])
    agent.change(ended, state=State.FINISHED, reason=Reason.EXITED, exit_code=3, finished_at=5.0)
    worker.ask("jobs.remove", connection=agent.connection, job=removed)
    before = {uid: world.broker.ledger.info(world.broker.ledger.find("", uid)) for _, uid in paths}
    replay(world, path)

    again = World(open_store(path))
    worker = again.worker()
    (told,) = worker.of("links")[0]["links"]
    assert told["connection"] == agent.connection
    assert not told["up"]
    for uid in (ended, removed):
        assert again.broker.ledger.info(again.broker.ledger.find("", uid)) == before[uid]
    assert worker.ask("jobs.info", connection=agent.connection, job=running)["job"] == {
        **before[running],
        "confirmed": False,
        "phase": "unreachable",
    }
    assert again.broker.ledger.events.last > world.broker.ledger.events.last
    call = worker.call("jobs.create", name="job 0", agent=BY_UID, key="key-0")
    assert worker.results[call]["job"]["uid"] == running
    back = agent.again(2)
    back.world = again
    again.join(back)
    assert worker.ask("jobs.info", connection=agent.connection, job=running)["job"] == before[running]


@pytest.mark.parametrize("state", [State.RUNNING, State.FINISHED])
def test_a_removal_that_was_not_written_down_any_more_is_learned_from_the_agent(path: Path, state: State) -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    call = worker.call("jobs.create", name="job", agent=BY_UID, key="key-1")
    uid = worker.results[call]["job"]["uid"]
    agent.change(uid, state=state)
    worker.ask("jobs.remove", connection=agent.connection, job=uid)
    last = max(number for number, (_, parameters) in enumerate(world.recorder.statements) if "CLOSED" in parameters)
    del world.recorder.statements[last:]
    replay(world, path)
    again = World(open_store(path))
    assert again.broker.ledger.find("", uid).state is state
    back = agent.again(2)
    back.world = again
    again.join(back)
    assert again.broker.ledger.find("", uid).removed
    assert again.worker().ask("events", after=None, limit=1)["events"][0]["name"] == "job.removed"


def test_a_wait_is_not_answered_from_news_that_may_be_old(path: Path) -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    uids = []
    for key in ("key-1", "key-2"):
        call = worker.call("jobs.create", name="job", agent=BY_UID, key=key)
        uids.append(worker.results[call]["job"]["uid"])
    replay(world, path)
    agent.change(uids[0], state=State.RUNNING)
    again = World(open_store(path))
    worker = again.worker()
    calls = [worker.call("jobs.wait", connection=agent.connection, job=uid, until=None) for uid in uids]
    assert not worker.results
    back = agent.again(2)
    back.world = again
    again.join(back)
    assert list(worker.results) == calls[1:], "what is new is not waited for, what runs is"
    back.change(uids[0], state=State.FINISHED, reason=Reason.EXITED)
    assert worker.results[calls[0]]["job"]["state"] == "FINISHED"


def test_a_key_written_down_before_a_crash_gives_its_job(path: Path) -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    agent.silent = True
    worker.call("jobs.create", name="job", agent=BY_UID, key="key-1")
    uid = agent.asked_for[0][1]["uid"]
    replay(world, path)
    again = World(open_store(path))
    worker = again.worker()
    call = worker.call("jobs.create", name="job", agent=BY_UID, key="key-1")
    assert call not in worker.results
    back = agent.again(2)
    back.world, back.responder = again, type(agent.responder)()
    again.join(back)
    assert worker.results[call]["job"]["uid"] == uid


def test_a_dialled_agent_is_dialled_again_after_a_restart(path: Path) -> None:
    world = World()
    worker, agent = world.worker(), world.listener()
    call = worker.call(
        "jobs.create", name="job", agent={"type": "address", "address": "host:1", "token": "secret"}, key="k"
    )
    job = worker.results[call]["job"]
    replay(world, path)
    again = World(open_store(path))
    listener = again.listener()
    listener.jobs = agent.jobs
    again.run(7)
    assert listener.ready
    connection = job["path"].split("/")[2]
    assert again.worker().ask("jobs.info", connection=connection, job=job["uid"])["job"]["confirmed"]


def test_connections_are_remembered_as_long_as_their_jobs(path: Path) -> None:
    world = World(history=1)
    worker, agent = world.worker(), world.agent()
    for number in range(2):
        worker.call("jobs.create", name="job", agent=BY_UID, key=f"key-{number}")
    agent.say(agent.session.bye("shutdown"))
    world.run(1)
    replay(world, path)
    saved = open_store(path)
    assert [(connection.uid, connection.gone) for connection in saved.connections] == [(agent.connection, True)]
    assert (len(saved.jobs), len(list(saved.history.all()))) == (0, 1)
    again = World(saved, history=0)
    again.run(1)
    assert not again.broker.ledger.peers


def test_what_is_committed_is_told_and_survives(path: Path) -> None:
    open_store(path)
    wake = Wake()
    store = Store(path, wake)
    done: list[float] = []
    for number in range(5000):
        store.submit("INSERT INTO keys VALUES (?, 'c', 'j', 0)", f"key-{number}", done=done.append)
    store.close()
    assert wake.event.is_set()
    assert len(store.take_done(100)) == 100
    wake.event.clear()
    for callback in store.take_done(4800):
        callback(1.0)
    assert wake.event.is_set(), "there is more"
    wake.event.clear()
    rest = store.take_done(5000)
    assert len(rest) == 101, "those that are left, and on_opened"
    assert not wake.event.is_set()
    assert store.take_done(5000) == []
    assert 4799 <= len(done) <= 4800
    assert len(open_store(path).keys) == 5000


@pytest.mark.parametrize("damage", [b"this is no database" * 100, b"SQLite format 3\0" + os.urandom(8000)])
def test_a_broken_database_is_set_aside_loudly(path: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(damage)
    assert open_store(path).jobs == []
    aside = [entry for entry in path.parent.iterdir() if ".broken-" in entry.name]
    assert len(aside) == 1
    assert aside[0].read_bytes() == damage
    assert any("event=database_set_aside" in record.message for record in caplog.records)
    assert open_store(path).jobs == []


def test_a_record_that_makes_no_sense_counts_as_damage(path: Path) -> None:
    open_store(path)
    with closing(sqlite3.connect(path)) as database:
        row = ("uid", "c", "a", "n", 0.0, "RUNNING", 1, 0, "", None, b"\xc1", 1)
        columns = f"{JOB_COLUMNS}, event"
        database.execute(f"INSERT INTO jobs ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        database.commit()
    assert open_store(path).jobs == []
    assert any(".broken-" in entry.name for entry in path.parent.iterdir())


def test_a_database_of_a_newer_version_is_set_aside(path: Path) -> None:
    open_store(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    open_store(path)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone()[0] == SCHEMA
    assert any(".broken-" in entry.name for entry in path.parent.iterdir())


@pytest.mark.parametrize("version", range(SCHEMA))
def test_a_database_of_an_older_version_is_migrated_with_all_it_holds(path: Path, version: int) -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    call = worker.call("jobs.create", name="job", agent=BY_UID, key="key-1")
    agent.change(worker.results[call]["job"]["uid"], state=State.FINISHED, reason=Reason.EXITED, exit_code=3)
    replay(world, path)
    with closing(sqlite3.connect(path)) as database:
        for table in ["unwanted", *(["events"] if version < 2 else [])]:
            database.execute(f"DROP TABLE {table}")
        database.execute(f"PRAGMA user_version = {version}")
        database.commit()
    saved = open_store(path)
    assert [entry.last_record.exit_code for entry in saved.history.all()] == [3]
    assert (len(saved.connections), len(saved.keys), bool(saved.events)) == (1, 1, version == 2)
    assert not [entry for entry in path.parent.iterdir() if ".broken-" in entry.name]
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone()[0] == SCHEMA


@pytest.mark.parametrize("damage", ["DROP TABLE jobs", "DROP TABLE keys", "ALTER TABLE jobs RENAME COLUMN state TO s"])
def test_tables_that_are_not_as_they_should_be_count_as_damage(path: Path, damage: str) -> None:
    open_store(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute(damage)
        database.commit()
    assert open_store(path).jobs == []
    assert any(".broken-" in entry.name for entry in path.parent.iterdir())


def test_a_directory_in_the_databases_place_is_set_aside(path: Path) -> None:
    path.mkdir()
    assert open_store(path).jobs == []
    assert path.is_file()


_ON_A_FULL_DISK = """
import logging, resource, signal, sys
from pathlib import Path
from prouter.broker.store.opening import open_store
from prouter.broker.store.store import Store

logging.basicConfig()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
path = Path(sys.argv[1])
saved = open_store(path)
store = Store(path, lambda: None)
told = []
store.submit("INSERT INTO keys VALUES ('key', 'c', 'j', 0)", done=told.append)
while not told:
    for callback in store.take_done(100):
        callback(0.0)
print(len(saved.jobs), store.failures)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.submit("INSERT INTO keys VALUES ('later', 'c', 'j', 0)")
store.close()
"""


def test_a_router_that_starts_on_a_full_disk_has_its_jobs_and_writes_when_there_is_room(path: Path) -> None:
    world = World()
    worker = world.worker()
    world.agent()
    worker.call("jobs.create", name="job", agent=BY_UID, key="key-1")
    replay(world, path)
    done = subprocess.run(
        [sys.executable, "-c", _ON_A_FULL_DISK, path], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.split() == ["1", "1"], done
    assert "event=database_not_writable" in done.stderr
    assert {key for key, _, _ in open_store(path).keys} == {"key-1", "key", "later"}


def test_events_are_there_for_the_clients_of_the_next_broker(path: Path) -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    call = worker.call("jobs.create", name="job", agent=BY_UID, key="key-1")
    uid = worker.results[call]["job"]["uid"]
    seen = worker.ask("events", after=None, limit=1)["last"]
    for state in (State.RUNNING, State.FINISHED):
        agent.change(uid, state=state)
    replay(world, path)
    again = World(open_store(path))
    answer = again.worker().ask("events", after=seen, limit=10)
    assert answer["first"] <= seen
    assert [event["body"]["record"]["state"] for event in answer["events"]] == ["RUNNING", "FINISHED"]


def test_no_more_events_are_written_than_are_kept(path: Path) -> None:
    world = World()
    agent = world.agent()
    ledger = world.broker.ledger
    link = next(iter(world.broker.links))
    for _ in range(EVENTS + 200):
        ledger.agent_changed(link, "up")
    replay(world, path)
    assert agent.ready
    with closing(sqlite3.connect(path)) as database:
        assert EVENTS <= database.execute("SELECT count(*) FROM events").fetchone()[0] < EVENTS + 100
    assert len(open_store(path).events) == EVENTS


def test_the_database_is_nobody_elses_business(path: Path) -> None:
    open_store(path)
    assert path.stat().st_mode & 0o077 == 0


def test_a_database_that_cannot_be_written_is_tried_again_while_callers_go_on(path: Path) -> None:
    open_store(path)
    store = Store(path, Wake())
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            done: list[float] = []
            store.submit("INSERT INTO keys VALUES ('key', 'c', 'j', 0)", done=done.append)
            wait_until(lambda: store.failures > 0, 15, "the writer gives up waiting for the lock")
            assert wait_until(lambda: store.take_done(100), 5)
            for number in range(5000):
                store.submit("INSERT INTO keys VALUES (?, 'c', 'j', 0)", f"key-{number}", done=done.append)
            wait_until(lambda: told(store) and len(done) == 5000, 10, "all are told, however many wait")
            other.execute("ROLLBACK")
        wait_until(lambda: len(open_store(path).keys) == 5001, 15, "it is written after all")
    finally:
        store.close()


def told(store: Store) -> bool:
    """Call back what is to be called back."""
    for callback in store.take_done(100):
        callback(0.0)
    return True


def test_a_value_that_no_column_can_hold_keeps_nobody_else_waiting(path: Path) -> None:
    open_store(path)
    woken = Wake()
    store = Store(path, woken)
    values: tuple[object, ...] = (2**63, [], 7)
    for value in values:
        store.submit("REPLACE INTO keys VALUES ('x', 'c', 'j', ?)", value, done=lambda now: None)
    wait_until(lambda: store.backlog == 0 and store.failures == 2, 10, "the others are written")
    assert woken.event.wait(10)
    store.close()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT at FROM keys").fetchall() == [(7.0,)]


def test_entries_survive_packing() -> None:
    record = JobRecord("u", "c", "n", State.FINISHED, 4, ["a"], error="no", exit_code=0, reason=Reason.EXITED)
    entry = Entry.heard(record, "agent-1")
    assert entry.last_record == record
    assert entry.told == record.to_wire()
    entry.close(replace(record, revision=5), "call")
    assert entry.record.state is State.CLOSED
    assert entry.told == entry.record.to_wire()
    assert entry.last_record == replace(record, revision=5)


def test_a_job_that_runs_survives_packing() -> None:
    record = JobRecord(
        "u",
        "c",
        "n",
        State.RUNNING,
        4,
        ports=[80],
        endpoint={"port": 80},
        resources={"cpus": 2.0},
        owner="ann",
        key="k",
    )
    entry = Entry.heard(record, "agent-1")
    again = Entry("u", "c", "agent-1", "n", 0.0, "RUNNING", 4, False, "", None, entry.packed)
    for one in (entry, again):
        assert (one.last_record, one.told) == (record, record.to_wire())
        assert (one.resources, one.owner, one.key, one.client) == ({"cpus": 2.0}, "ann", "k", None)
    entry.usage = (1.5, 4096)
    assert entry.wire == {**record.to_wire(), "cpu_seconds": 1.5, "rss_bytes": 4096}
    entry.set(replace(record, state=State.FINISHED))
    assert not entry.resources
    assert entry.wire == {**record.to_wire(), "state": "FINISHED"}, "usage is of running jobs"
