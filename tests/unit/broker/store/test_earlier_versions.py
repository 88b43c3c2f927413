"""Unbounded records of an earlier version do not keep a router from starting, and are shortened."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prouter.broker.jobs.stored_history import JOB_COLUMNS
from prouter.broker.links.hello import AgentInfo
from prouter.broker.store.opening import open_store
from prouter.errors import KeyReused
from prouter.fabric.frames import pack_body, unpack_body
from prouter.jobs import MAX_NAME, MAX_RECORD, JobRecord, State
from tests.support.broker_world import World, listed

CONNECTION = "c" * 32
INFO = AgentInfo("agent-1", "one", "a" * 32, {}, {})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "router.sqlite"
    open_store(path)
    return path


def execute(path: Path, statement: str, *parameters: Any) -> list[Any]:
    with closing(sqlite3.connect(path)) as database, database:
        return database.execute(statement, parameters).fetchall()


def save(path: Path, record: JobRecord) -> None:
    values = (record.uid, CONNECTION, "agent-1", record.name, 1.0, record.state.value, 3, 0, "", 2.0)
    packed = pack_body({key: value for key, value in record.to_wire().items() if key != "args_shortened"})
    columns = f"{JOB_COLUMNS}, event"
    execute(path, f"INSERT INTO jobs ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", *values, packed, 5)


def save_connection(path: Path, info: AgentInfo) -> None:
    body = {"mode": "SERVER", "info": info.to_wire(), "since": 1.0, "address": None}
    execute(path, "INSERT INTO connections VALUES (?, 0, ?)", CONNECTION, pack_body(body))


@pytest.mark.parametrize("state", [State.RUNNING, State.FINISHED])
def test_huge_records_are_shortened_once(path: Path, caplog: pytest.LogCaptureFixture, state: State) -> None:
    save_connection(path, INFO)
    huge = JobRecord("1" * 32, CONNECTION, "n" * 1_000_000, state=state, args=["a" * 60_000] * 30, error="e" * 500_000)
    save(path, huge)
    save(path, replace(huge, uid="2" * 32, name="small", args=["true"], error=None))
    caplog.set_level(logging.WARNING)
    world = World(open_store(path))
    jobs = {job["uid"]: job for job in listed(world.worker())}
    assert len(jobs["1" * 32]["name"]) == MAX_NAME
    assert jobs["1" * 32]["args_shortened"]
    assert (jobs["2" * 32]["args"], jobs["2" * 32]["args_shortened"]) == (["true"], False)
    assert "database_shortened rows=1" in caplog.text
    caplog.clear()
    open_store(path)
    assert "database_shortened" not in caplog.text
    ((name, record),) = execute(path, "SELECT name, record FROM jobs WHERE uid = ?", "1" * 32)
    assert len(name) <= MAX_NAME
    assert len(record) <= MAX_RECORD
    assert unpack_body(record)["uid"] == "1" * 32


def test_huge_events_are_left_out_and_the_others_are_there(path: Path) -> None:
    for number in range(1, 8):
        content = "x" * (3_000_000 if number in (3, 7) else 10)
        body = {"id": number, "at": 100.0 + number, "name": "job", "body": {"text": content}}
        execute(path, "INSERT INTO events VALUES (?, ?)", number, pack_body(body))
    saved = open_store(path)
    assert [number for number, _ in saved.events] == [1, 2, 4, 5, 6]
    assert (saved.last_event, saved.last_seen) == (7, 106.0)
    assert execute(path, "SELECT count(*) FROM events") == [(5,)]


def test_more_events_than_are_kept_in_bytes_are_left_out(path: Path) -> None:
    body = pack_body({"id": 1, "at": 1.0, "name": "job", "body": {"text": "x" * 30_000}})
    with closing(sqlite3.connect(path)) as database, database:
        database.executemany("INSERT INTO events VALUES (?, ?)", [(number, body) for number in range(1, 1301)])
    saved = open_store(path)
    assert 1000 < len(saved.events) < 1200
    assert saved.events[-1][0] == 1300
    ((left,),) = execute(path, "SELECT count(*) FROM events")
    assert left == len(saved.events)


def test_huge_properties_of_a_connection_are_left_out(path: Path) -> None:
    save_connection(path, replace(INFO, properties={"long": "p" * 5_000_000}))
    (connection,) = open_store(path).connections
    assert (connection.info.uid, connection.info.properties) == ("agent-1", {})
    ((size,),) = execute(path, "SELECT length(body) FROM connections")
    assert size < 1000


def test_what_was_empty_is_given_back(path: Path) -> None:
    for number in range(80):
        save(path, JobRecord(f"{number:032x}", CONNECTION, "job", state=State.FINISHED, error="e" * 1_000_000))
    before = path.stat().st_size
    open_store(path)
    assert path.stat().st_size < before / 10


def test_a_key_with_another_body_is_refused_by_the_next_broker_and_one_of_an_earlier_version_is_not(path: Path) -> None:
    save_connection(path, INFO)
    save(path, JobRecord("1" * 32, CONNECTION, "job"))
    for key in ("new", "old"):
        execute(path, "INSERT INTO keys VALUES (?, ?, ?, 1.0)", key, CONNECTION, "1" * 32)
    execute(path, "INSERT INTO digests VALUES ('new', 'd1')")
    worker = World(open_store(path)).worker()
    about: dict[str, Any] = {"name": "job", "agent": {"type": "uid", "uid": "agent-1"}}
    with pytest.raises(KeyReused):
        worker.ask("jobs.create", **about, key="new", digest="d2")
    for key, digest in (("new", "d1"), ("new", None), ("old", "d2")):
        call_id = worker.call("jobs.create", **about, key=key, digest=digest)
        assert worker.results[call_id]["job"]["uid"] == "1" * 32
