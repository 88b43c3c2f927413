"""A database that is deleted, replaced or damaged under a running broker: a new one gets everything."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from prouter.broker.store.opening import open_store
from prouter.broker.store.restore import Saved
from prouter.broker.store.store import Store
from prouter.jobs import Reason, State
from tests.support.broker_world import World
from tests.support.processes import wait_until
from tests.unit.broker.store.test_store import replay

BY_UID = {"type": "uid", "uid": "agent-1"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "router.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    path.parent.mkdir()
    open_store(path)
    store = Store(path, lambda: None)
    yield store
    store.close()


@pytest.fixture
def renewed(store: Store) -> Callable[[], bool]:
    """Whether everything is to be submitted again."""
    asked = threading.Event()
    store.on_renewed = lambda now: asked.set()

    def check() -> bool:
        for callback in store.take_done(10_000):
            callback(0.0)
        return asked.is_set()

    return check


def put(store: Store, key: str) -> None:
    """Write something down."""
    store.submit("INSERT OR REPLACE INTO keys VALUES (?, 'c', 'j', 0)", key)


def keys(path: Path) -> set[str]:
    """What was written down."""
    return {key for key, _, _ in open_store(path).keys}


def delete(path: Path) -> None:
    for file in path.parent.glob("router.sqlite*"):
        file.unlink()


def replace(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    os.replace(copy, path)


def remove_directory(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.mkdir()


@pytest.mark.parametrize("fault", [delete, replace, remove_directory])
def test_a_database_that_is_gone_is_begun_anew_and_everything_asked_for(
    path: Path, store: Store, renewed: Callable[[], bool], fault: Callable[[Path], None]
) -> None:
    put(store, "before")
    wait_until(lambda: "before" in keys(path))
    fault(path)
    put(store, "after")
    wait_until(renewed, what="everything is asked for")
    wait_until(lambda: keys(path) == {"after"})


def test_a_database_that_is_deleted_while_nothing_happens_is_missed(
    path: Path, store: Store, renewed: Callable[[], bool]
) -> None:
    put(store, "before")
    wait_until(lambda: "before" in keys(path))
    delete(path)
    wait_until(renewed, what="everything is asked for")


def test_a_directory_that_comes_back_later_gets_everything(
    path: Path, store: Store, renewed: Callable[[], bool]
) -> None:
    put(store, "before")
    wait_until(lambda: "before" in keys(path))
    shutil.rmtree(path.parent)
    put(store, "meanwhile")
    wait_until(lambda: store.failures, what="it cannot be written")
    assert not renewed()
    path.parent.mkdir()
    wait_until(renewed, what="everything is asked for")
    wait_until(lambda: keys(path) == {"meanwhile"})


def test_damage_that_only_writing_finds_is_set_aside_and_everything_asked_for(path: Path) -> None:
    path.parent.mkdir()
    open_store(path)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA journal_mode = DELETE")
        page = database.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_autoindex_jobs_1'").fetchone()[
            0
        ]
        size = database.execute("PRAGMA page_size").fetchone()[0]
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    assert open_store(path).jobs == [], "it can be read"
    store = Store(path, lambda: None)
    asked: list[float] = []
    store.on_renewed = asked.append
    try:
        store.submit("UPDATE jobs SET removal = 'x' WHERE uid = 'y'")
        put(store, "after")
        wait_until(
            lambda: [callback(0.0) for callback in store.take_done(10)] and asked, what="everything is asked for"
        )
        assert keys(path) == {"after"}
        assert list(path.parent.glob("router.sqlite.broken-*"))
    finally:
        store.close()


def test_a_broker_that_writes_everything_again_leaves_nothing_out(path: Path) -> None:
    path.parent.mkdir()
    world = World()
    worker, agent = world.worker(), world.agent(properties={"colour": "blue"})
    world.listener("host:1", {"secret"})
    uids: list[str] = []
    for number in range(120):
        call = worker.call("jobs.create", name=f"job {number}", agent=BY_UID, key=f"key-{number}")
        world.run(0.1)
        uids.append(worker.results[call]["job"]["path"].split("/")[3])
    agent.change(uids[0], state=State.RUNNING, pid=5, endpoint={"port": 80}, args=["a"])
    agent.change(uids[1], state=State.FINISHED, reason=Reason.EXITED, exit_code=3, finished_at=5.0)
    worker.ask("jobs.remove", connection=agent.connection, job=uids[2])
    dialled = {"type": "address", "address": "host:1", "token": "secret"}
    worker.call("jobs.create", name="dialled", agent=dialled, key="key-dialled")
    before = stored(world, path)
    world.recorder.statements.clear()
    delete(path)
    world.broker.rewriting.begin(world.now)
    world.run(1)
    after = stored(world, path)
    assert (len(after.jobs), len(list(after.history.all()))) == (119, 2)
    assert sorted(map(facts, before.jobs)) == sorted(map(facts, after.jobs))
    assert sorted(map(facts, before.history.all())) == sorted(map(facts, after.history.all()))
    assert before.keys == after.keys
    assert before.events == after.events
    assert before.connections == after.connections
    assert after.last_event >= before.last_event


def stored(world: World, path: Path) -> Saved:
    """What the next broker finds of what was submitted so far."""
    replay(world, path)
    return open_store(path)


def facts(entry: object) -> list[str]:
    """All of a job, comparable."""
    names = ("uid", "connection", "agent", "name", "created_at", "state", "revision", "lost", "removal", "ended_at")
    return [str(getattr(entry, name)) for name in (*names, "packed")]
