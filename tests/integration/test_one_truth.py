"""No worker contradicts what another has answered, however late it receives the broker's events.

A client whose requests reach several workers sees one router: each row of these tables does something through one
worker while the others hear nothing, asks them, and looks at what they answer. What they hear later comes only once
they have either answered or asked. Their caches are warm: each was asked about the job before.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.server import serve

from tests.support.broker_relay import BrokerRelay
from tests.support.processes import Agent, Router, start_agent, start_router, wait_until
from tests.support.worker_clients import clients_of_workers

WORKERS = 4
SERVER = Path(__file__).parents[1] / "jobs" / "websocket_server.py"


class Stand:
    """A router with a client at each of its workers.

    Attributes:
        first: the client at the worker that does things; `others` are at the others.
    """

    def __init__(self, router: Router, agent: Agent) -> None:
        self.router, self.agent = router, agent
        self.relay = BrokerRelay(router, WORKERS)
        pids = self.relay.pids
        clients = clients_of_workers(router, pids)
        (first, self.first), *others = clients.items()
        self.pids = [pid for pid in clients if pid != first]
        self.others = [client for _, client in others]

    def create(self) -> str:
        """A new job that every worker has been asked about."""
        path = self.router.create(self.agent.uid)
        self.warm(path)
        return path

    def warm(self, path: str) -> None:
        for client in (self.first, *self.others):
            client.ask("GET", path + "/logs/stdout")

    @contextmanager
    def others_behind(self, method: str, path: str, body: Any = None) -> Iterator[list[tuple[int, Any]]]:
        """The other workers hear no news; afterwards, what each of them answers to this request."""
        answers: list[tuple[int, Any]] = []
        self.relay.hold(self.pids)
        try:
            yield answers
            said = dict(self.relay.said)
            for client in self.others:
                client.send(method, path, body)
            wait_until(
                lambda: all(
                    self.relay.said[pid] > said[pid] or client.answered
                    for pid, client in zip(self.pids, self.others, strict=True)
                )
            )
        finally:
            self.relay.hold(())
        answers += [client.answer() for client in self.others]

    def close(self) -> None:
        for client in (self.first, *self.others):
            client.http.close()
        self.relay.close()


@pytest.fixture(scope="module")
def stand(short_dir: Path) -> Iterator[Stand]:
    # Without a hold nothing hides an answer from what is cached.
    router = start_router(short_dir / "truth", workers=WORKERS, control__hold=0)
    try:
        agent = start_agent(short_dir / "truth-agent", router, client__reconnect_delay=0.05)
        try:
            stand = Stand(router, agent)
            yield stand
            stand.close()
        finally:
            agent.stop()
    finally:
        router.stop()


def create(stand: Stand) -> str:
    return stand.create()


def start(stand: Stand, path: str, *, server: bool = True) -> None:
    expose = {"expose": {"port": "assign"}} if server else {"port_expected_count": 0}
    args = [sys.executable, str(SERVER)] if server else ["sleep", "60"]
    status, info = stand.first.ask("POST", path + "/start", {"args": args, "env": {}, **expose})
    assert (status, info["state"]) == (200, "RUNNING")


def created_and_started(stand: Stand) -> str:
    path = stand.create()
    start(stand, path)
    stand.warm(path)
    for client in stand.others:
        client.ask("GET", path + "/http/")  # leaves a connection to the job that is used again
    return path


def stop(stand: Stand, path: str) -> None:
    status, info = stand.first.ask("POST", path + "/stop", {"grace": 0})
    assert (status, info["state"]) == (200, "FINISHED")


def remove(stand: Stand, path: str) -> None:
    assert stand.first.ask("POST", path + "/remove")[0] == 200


BRIDGE = {"url": "ws://127.0.0.1:9/"}
Step = Callable[[Stand, str], None]

ROWS = [
    # what was before, what one worker does, the request to the others, their status, what they say
    pytest.param(create, start, ("GET", "/http/", None), 200, "open", id="start, then http"),
    pytest.param(create, start, ("POST", "/wsconnect/echo", BRIDGE), 200, "", id="start, then wsconnect"),
    pytest.param(create, start, ("GET", "/logs/stdout", None), 200, "", id="start, then logs"),
    pytest.param(create, start, ("GET", "/info", None), 200, "RUNNING", id="start, then info"),
    pytest.param(create, start, ("POST", "/start", {"args": ["true"], "env": {}}), 409, "", id="start, then start"),
    pytest.param(created_and_started, stop, ("GET", "/http/", None), 424, "stopped", id="stop, then http"),
    pytest.param(created_and_started, stop, ("POST", "/http/x", None), 424, "stopped", id="stop, then http post"),
    pytest.param(created_and_started, stop, ("POST", "/wsconnect/x", BRIDGE), 409, "", id="stop, then wsconnect"),
    pytest.param(created_and_started, stop, ("GET", "/info", None), 200, "FINISHED", id="stop, then info"),
    pytest.param(created_and_started, stop, ("GET", "/file/.pagent.stdout", None), 200, "", id="stop, then files"),
    pytest.param(created_and_started, remove, ("GET", "/http/", None), 424, "removed", id="remove, then http"),
    pytest.param(created_and_started, remove, ("POST", "/wsconnect/x", BRIDGE), 404, "", id="remove, then wsconnect"),
    pytest.param(created_and_started, remove, ("GET", "/wsconnect", None), 404, "", id="remove, then bridges"),
    pytest.param(created_and_started, remove, ("GET", "/logs/stdout", None), 404, "", id="remove, then logs"),
    pytest.param(created_and_started, remove, ("GET", "/file/x", None), 404, "job", id="remove, then files"),
    pytest.param(created_and_started, remove, ("GET", "/archive", None), 404, "job", id="remove, then archive"),
    pytest.param(created_and_started, remove, ("GET", "/info", None), 404, "removed", id="remove, then info"),
    pytest.param(created_and_started, remove, ("POST", "/wait", None), 404, "removed", id="remove, then wait"),
    pytest.param(created_and_started, remove, ("POST", "/remove", None), 404, "removed", id="remove, then remove"),
]


@pytest.mark.parametrize(("before", "change", "request_", "status", "told"), ROWS)
def test_a_change_of_a_job_is_known_to_every_worker(
    stand: Stand, before: Callable[[Stand], str], change: Step, request_: tuple[str, str, Any], status: int, told: str
) -> None:
    method, suffix, body = request_
    path = before(stand)
    with stand.others_behind(method, path + suffix, body) as answers:
        change(stand, path)
    assert [answer[0] for answer in answers] == [status] * len(answers), answers
    assert all(told in json.dumps(answer[1]) for answer in answers), answers
    stand.first.ask("POST", path + "/remove")


def test_a_worker_that_stood_still_for_so_long_that_it_was_given_up_knows_what_happened(stand: Stand) -> None:
    path, ended = stand.create(), created_and_started(stand)
    stopped, client = stand.pids[0], stand.others[0]
    told = stand.router.log.read_text().count("event=worker_away")
    os.kill(stopped, signal.SIGSTOP)
    try:
        client.send("GET", path + "/http/")
        start(stand, path)
        stop(stand, ended)
        wait_until(lambda: stand.router.log.read_text().count("event=worker_away") > told)
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert client.answer()[0] == 200
    assert client.ask("GET", ended + "/http/")[0] == 424
    assert client.ask("POST", ended + "/wsconnect/x", BRIDGE)[0] == 409


def test_a_job_without_a_server_is_told_by_every_worker(stand: Stand) -> None:
    path = stand.create()
    with stand.others_behind("POST", path + "/wsconnect/x", BRIDGE) as answers:
        start(stand, path, server=False)
    assert {(status, told["code"]) for status, told in answers} == {(502, "no_endpoint")}


def test_a_bridge_is_listed_by_every_worker_once_it_was_made(stand: Stand) -> None:
    path = created_and_started(stand)
    with serve(lambda ws: ws.recv_events_thread.join(), "127.0.0.1", 0) as peer:
        threading.Thread(target=peer.serve_forever, daemon=True).start()
        url = f"ws://127.0.0.1:{peer.socket.getsockname()[1]}/"
        with stand.others_behind("GET", path + "/wsconnect") as answers:
            assert stand.first.ask("POST", path + "/wsconnect/echo", {"url": url})[0] == 200
        assert [len(told["bridges"]) for _, told in answers] == [1] * len(answers)
        uid = answers[0][1]["bridges"][0]["uid"]
        with stand.others_behind("GET", path + "/wsconnect") as answers:
            assert stand.first.ask("DELETE", f"{path}/wsconnect/{uid}")[0] == 204
        assert [told["bridges"] for _, told in answers] == [[]] * len(answers)


def test_a_drain_counts_for_every_worker(stand: Stand) -> None:
    (connection,) = [entry["uid"] for entry in stand.first.ask("GET", "/connections")[1]["connections"]]
    create = {"name": "x", "agent": {"type": "uid", "uid": stand.agent.uid}}
    for client in stand.others:
        client.ask("GET", "/connections")
    with stand.others_behind("POST", "/jobs/create", create) as answers:
        assert stand.first.ask("POST", f"/connections/{connection}/drain")[0] == 200
    assert [status for status, _ in answers] == [503] * len(answers)
    with stand.others_behind("GET", "/connections") as answers:
        assert stand.first.ask("POST", f"/connections/{connection}/resume")[0] == 200
    assert [told["connections"][0]["draining"] for _, told in answers] == [False] * len(answers)
    assert [client.ask("POST", "/jobs/create", create)[0] for client in stand.others] == [200] * len(answers)


def test_an_agent_that_one_worker_shows_gets_jobs_from_all(stand: Stand, short_dir: Path) -> None:
    create = {"name": "x", "agent": {"type": "uid", "uid": "second"}}
    for client in stand.others:
        assert client.ask("POST", "/jobs/create", create)[0] == 404
    agents: list[Agent] = []

    def shown() -> bool:
        connections = stand.first.ask("GET", "/connections")[1]["connections"]
        return any(entry["peer"]["auth"]["uid"] == "second" for entry in connections)

    try:
        with stand.others_behind("POST", "/jobs/create", create) as answers:
            agents.append(start_agent(short_dir / "second", stand.router, identity__uid="second"))
            wait_until(shown)
        assert [status for status, _ in answers] == [200] * len(answers), answers
        for (_, job), client in zip(answers, stand.others, strict=True):
            assert client.ask("GET", f"{job['path']}/file")[0] == 200
    finally:
        for agent in agents:
            agent.stop()


def test_the_same_key_gives_the_same_job_through_every_worker(stand: Stand) -> None:
    body = {"name": "x", "agent": {"type": "uid", "uid": stand.agent.uid}}
    headers = {"Idempotency-Key": "one truth"}
    made = []
    for client in (stand.first, *stand.others):
        client.http.request("POST", "/jobs/create", json.dumps(body), headers)
        made.append(client.answer()[1]["uid"])
    assert len(set(made)) == 1
    for client in stand.others:
        assert made[0] in [job["uid"] for job in client.ask("GET", "/jobs?limit=1000")[1]["jobs"]]
