"""No worker shows an older list of connections than another has shown, though each keeps the list and asks seldom."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

import psutil
import pytest

from tests.support.processes import Agent, Router, start_agent, start_router, wait_until
from tests.support.worker_clients import Client, clients_of_workers

WORKERS = 4
CHANGES = 60
_ETAG = re.compile(r'W/"([0-9a-f]+)-([0-9]+)"')


class History:
    """The order of all lists that clients have seen: brokers as they come, and the versions of each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._brokers: list[str] = []
        self._newest = (0, 0)
        self.answers = 0

    @property
    def brokers(self) -> int:
        return len(self._brokers)

    def newest(self) -> tuple[int, int]:
        with self._lock:
            return self._newest

    def add(self, etag: str) -> tuple[int, int]:
        """Note a list that was shown; return its place in the order."""
        found = _ETAG.fullmatch(etag)
        assert found is not None, etag
        with self._lock:
            if found[1] not in self._brokers:
                self._brokers.append(found[1])
            place = (self._brokers.index(found[1]), int(found[2]))
            self._newest = max(self._newest, place)
            self.answers += 1
            return place


def look(client: Client, history: History) -> bool:
    """Ask a worker for the list; return whether the first agent drains. Everything shown before is known to it."""
    known = history.newest()
    client.send("GET", "/connections")
    response = client.http.getresponse()
    body = response.read()
    assert response.status == 200, body
    place = history.add(response.headers["ETag"])
    assert place >= known, "a worker shows an older list than another one has shown"
    return b'"draining":true' in body


@contextmanager
def watched(clients: list[Client], history: History) -> Iterator[None]:
    """All the while, ask every worker for the list over and over."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def poll(client: Client) -> None:
        try:
            while not stop.is_set():
                look(client, history)
        except (AssertionError, OSError, HTTPException) as error:
            failures.append(error)

    threads = [threading.Thread(target=poll, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


@pytest.fixture(scope="module")
def router(short_dir: Path) -> Iterator[Router]:
    router = start_router(short_dir / "lists", workers=WORKERS)
    yield router
    router.stop()


@pytest.fixture(scope="module")
def agent(short_dir: Path, router: Router) -> Iterator[Agent]:
    agent = start_agent(short_dir / "lists-agent", router, client__reconnect_delay=0.05)
    yield agent
    agent.stop()


def at_workers(router: Router) -> list[Client]:
    """A client at each worker."""
    gunicorn = psutil.Process(router.child("gunicorn"))

    def pids() -> list[int]:
        return [child.pid for child in gunicorn.children()]

    wait_until(lambda: len(pids()) == WORKERS)
    return list(clients_of_workers(router, pids()).values())


def test_every_worker_shows_a_change_once_any_has_answered_it(router: Router, agent: Agent) -> None:
    chance = random.Random(7)
    history = History()
    clients, pollers = at_workers(router), at_workers(router)
    (connection,) = [entry["uid"] for entry in clients[0].ask("GET", "/connections")[1]["connections"]]
    with watched(pollers, history):
        for number in range(CHANGES):
            verb = ("drain", "resume")[number % 2]
            assert chance.choice(clients).ask("POST", f"/connections/{connection}/{verb}")[0] == 200
            shown = [look(client, history) for client in chance.sample(clients, WORKERS)]
            assert shown == [verb == "drain"] * WORKERS
    assert history.newest()[1] >= CHANGES
    assert history.answers > 5 * CHANGES
    for client in clients + pollers:
        client.close()


def test_no_worker_shows_an_older_list_when_the_broker_is_killed(router: Router, agent: Agent) -> None:
    history = History()
    clients, pollers = at_workers(router), at_workers(router)
    with watched(pollers, history):
        for killed in range(1, 4):
            wait_until(lambda: clients[0].ask("GET", "/connections")[1]["connections"][0]["up"])
            router.kill_broker()
            wait_until(lambda killed=killed: history.brokers > killed)  # type: ignore[misc]
            for client in clients:
                look(client, history)
    for client in clients + pollers:
        client.close()


def test_workers_answer_without_the_broker_as_long_as_nothing_changes(router: Router, agent: Agent) -> None:
    history = History()
    clients = at_workers(router)
    wait_until(lambda: clients[0].ask("GET", "/connections")[1]["connections"][0]["up"])
    broker = router.child("broker")

    def all_keep_it() -> bool:
        """Whether every worker has the list of the current version while the broker cannot be asked."""
        for client in clients:
            look(client, history)
        os.kill(broker, signal.SIGSTOP)
        try:
            for client in clients:
                client.send("GET", "/connections")
            until = time.monotonic() + 1.0
            while not all(client.answered for client in clients) and time.monotonic() < until:
                time.sleep(0.01)
            return all(client.answered for client in clients)
        finally:
            os.kill(broker, signal.SIGCONT)
            for client in clients:
                assert client.answer()[0] == 200

    wait_until(all_keep_it)  # figures may change at any moment, but not each time
    for client in clients:
        client.close()
