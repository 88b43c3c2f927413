"""Three routers behind nginx that share agents, and clients that check every response.

``python -m tests.faults.site --agents 10 --rounds 3`` runs the scenarios of `test_several_routers` for longer.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import os
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import requests
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from tests.bench.nginx import Nginx, several_routers
from tests.faults.load import Gauge, Load
from tests.support.ports import free_port
from tests.support.processes import Agent, Router, processes_with, start_router, wait_until

__all__ = ["JOBS", "Site", "Traffic"]

JOBS = Path(__file__).parents[1] / "jobs"
_TIMEOUT = 60.0


class Site:
    """The routers, their agents and nginx. Use it as a context.

    Attributes:
        url: of nginx.
        routers: that run now; each has its ports and directories for as long as the site exists.
        served: path of a job on each agent that runs ``fast_server``.
    """

    def __init__(self, directory: Path, agents: int, routers: int = 3) -> None:
        self.directory = directory
        self._ports = [(free_port(), free_port()) for _ in range(routers)]
        self._stack = contextlib.ExitStack()
        self.routers: list[Router] = []
        self.agents: list[Agent] = []
        with contextlib.ExitStack() as stack:
            stack.callback(self._end)
            with ThreadPoolExecutor(routers) as pool:
                self.routers = list(pool.map(self._router, range(routers)))
            with ThreadPoolExecutor(3) as pool:
                self.agents = list(pool.map(self._agent, range(agents)))
            addresses = [f"127.0.0.1:{control}" for control, _ in self._ports]
            port = free_port()
            nginx = Nginx(directory / "nginx", addresses[0], port, adapt=several_routers(addresses))
            self._stack.callback(nginx.close)
            self.url = f"http://127.0.0.1:{port}"
            self.linked()
            self.served = [self.routers[0].serve(agent.uid, JOBS / "fast_server.py") for agent in self.agents]
            stack.pop_all()

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        """Kill everything at once: agents would leave their jobs to their keepers for a minute."""
        self._stack.close()
        end = time.monotonic() + 10
        while (left := processes_with(f"{self.directory}/")) and time.monotonic() < end:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        for process in [*self.agents, *self.routers]:
            process.stop()

    def _router(self, number: int) -> Router:
        control, agents = self._ports[number]
        return start_router(
            self.directory / f"router-{number}",
            workers=1,
            control__port=control,
            server__port=agents,
            control__trusted_proxies=("127.0.0.1/32",),
            control__hold=30,
        )

    def _agent(self, number: int) -> Agent:
        sets = {"identity.uid": f"agent-{number}", "jobs.keep_for": 60.0}
        addresses = tuple(f"127.0.0.1:{agents}" for _, agents in self._ports)
        return Agent(self.directory / f"agent-{number}", None, {"client.address": addresses, **sets})

    def linked(self) -> None:
        """Wait until every router is linked to every agent."""
        for router in self.routers:
            wait_until(lambda router=router: self._links(router) == len(self.agents), 30, "all agents are linked")  # type: ignore[misc]

    def _links(self, router: Router) -> int:
        return sum(connection["up"] for connection in router.get("/connections").json()["connections"])

    def kill(self, number: int) -> None:
        """Kill a router with all its processes."""
        os.killpg(self.routers[number].pid, signal.SIGKILL)
        self.routers[number].popen.wait(10)

    def restart(self, number: int) -> None:
        """Start a router that has ended; return once all agents are linked to it."""
        self.routers[number] = self._router(number)
        self.linked()

    def upgrade_router(self, number: int) -> None:
        """Stop a router as systemd does, and start it again."""
        assert self.routers[number].stop() == 0
        self.restart(number)

    def upgrade_agent(self, number: int) -> None:
        """Stop an agent, whose jobs go on, and start it again."""
        assert self.agents[number].stop() == 0
        self.agents[number] = self._agent(number)
        self.linked()


class Traffic:
    """Clients of the site. What went wrong is in the `Load`'s errors.

    Attributes:
        breaks: how often a WebSocket broke.
        keys: by key of a creation, the path that its client was told.
        ran: keys of the runs.
        statuses: how often creations got each status, 0 for a broken connection.
    """

    def __init__(self, site: Site) -> None:
        self.breaks = 0
        self.keys: dict[str, str] = {}
        self.ran: list[str] = []
        self._marks = site.directory / "marks"
        self.statuses: Counter[int] = Counter()
        self._site = site
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def begin(self, load: Load, *, idempotent: int = 4, websockets: int = 4, creators: int = 2) -> None:
        """Start the clients."""
        load.add("idempotent", self.idempotent, idempotent)
        load.add("websocket", self.echo, websockets)
        load.add("create", self.create, creators)
        load.add("run", self.run, 1)
        load.started()

    def idempotent(self, gauge: Gauge) -> None:
        """Send requests of idempotent methods over one connection; each has to get the right response."""
        number = next(self._numbers)
        path = self._site.served[number % len(self._site.served)]
        connection = http.client.HTTPConnection(self._site.url.removeprefix("http://"), timeout=_TIMEOUT)
        body = os.urandom(500)
        try:
            for method, target, data, expected in (
                ("GET", f"{path}/http/", None, b"x" * 100),
                ("PUT", f"{path}/file/load/{number}", body, None),
                ("GET", f"{path}/file/load/{number}", None, body),
                ("GET", f"{path}/info", None, None),
                ("HEAD", f"{path}/info", None, b""),
                ("PUT", f"{path}/http/echo", b"some", None),
                ("GET", f"{path}/http/bytes/100000", None, None),
                ("OPTIONS", f"{path}/http/echo", None, None),
                ("POST", f"{path}/info", None, None),
            ):
                began = time.monotonic()
                connection.request(method, target, data)
                answer = connection.getresponse()
                got = answer.read()
                took = time.monotonic() - began
                assert answer.status in (200, 201, 204), (
                    f"{method} {target} after {took:.2f} s: {answer.status} {got[:300]!r}"
                )
                assert expected is None or got == expected, f"{method} {target}: {got[:100]!r}"
                gauge.tick()
        finally:
            connection.close()

    def echo(self, gauge: Gauge) -> None:
        """Echo numbers over a WebSocket, and connect again when it breaks."""
        path = self._site.served[next(self._numbers) % len(self._site.served)]
        url = self._site.url.replace("http", "ws", 1) + f"{path}/http/ws"
        try:
            with connect(url, open_timeout=_TIMEOUT, ping_interval=None) as websocket:
                for number in itertools.count():
                    websocket.send(struct.pack("<Q", number))
                    assert websocket.recv(_TIMEOUT) == struct.pack("<Q", number)
                    gauge.tick()
                    gauge.rest(0.02)
                    if gauge.stopping.is_set():
                        return
        except (OSError, WebSocketException) as error:
            gauge.tick()
            with self._lock:
                self.breaks += 1
            if "HTTP" in str(error):
                raise AssertionError(f"a new WebSocket is refused: {error}") from error

    def create(self, gauge: Gauge) -> None:
        """Create a job with a key, twice, and ask for it."""
        key = uuid4().hex
        self.keys[key] = self._twice("/jobs/create", {"name": key, "agent": {"type": "any"}}, key, gauge)

    def run(self, gauge: Gauge) -> None:
        """Run a job with a key, twice, wait for its end. It writes a line each time it runs."""
        key = uuid4().hex
        args = ["sh", "-c", f"echo {key} >> {self._marks}"]
        body = {"name": key, "agent": {"type": "any"}, "args": args, "env": {}, "port_expected_count": 0}
        path = self._twice("/jobs/run", body, key, gauge)
        answer = requests.post(f"{self._site.url}{path}/wait", timeout=_TIMEOUT)
        assert (answer.status_code, answer.json().get("exit_code")) == (200, 0), answer.text
        self.ran.append(key)

    def _twice(self, target: str, body: dict[str, Any], key: str, gauge: Gauge) -> str:
        """Send a request until it has succeeded twice, and ask for the job each time; return the job's path."""
        paths: list[str] = []
        end = time.monotonic() + _TIMEOUT
        while len(paths) < 2:
            status, info = self._post(target, body, key)
            self.statuses[status] += 1
            if status == 200:
                paths.append(info["path"])
                found = requests.get(f"{self._site.url}{info['path']}/info", timeout=_TIMEOUT)
                assert found.status_code == 200, f"{found.status_code} {found.text}"
            else:
                assert status in (0, 429, 502, 503), f"{status} {info}"
                assert time.monotonic() < end, f"{status} {info}"
                gauge.rest(0.2)
            gauge.tick()
        assert len(set(paths)) == 1, f"one key gave {paths}"
        return paths[0]

    def _post(self, path: str, body: dict[str, Any], key: str) -> tuple[int, Any]:
        try:
            answer = requests.post(self._site.url + path, json=body, headers={"Idempotency-Key": key}, timeout=_TIMEOUT)
            return answer.status_code, answer.json()
        except requests.ConnectionError as error:
            return 0, repr(error)

    def check_creations(self) -> None:
        """Check that each key gave one job, at whichever router one looks, that no other exists, and each ran once."""
        assert sorted(self._marks.read_text().split()) == sorted(self.ran)
        told = set(self.keys.values())
        for router in self._site.routers:
            found: list[str] = []
            cursor = ""
            while True:
                page = router.get(f"/jobs?limit=1000&state=NEW{cursor}").json()
                found += [job["path"] for job in page["jobs"]]
                if page["next"] is None:
                    break
                cursor = f"&cursor={page['next']}"
            assert len(found) == len(set(found))
            assert set(found) == told, f"too many: {set(found) - told}, missing: {told - set(found)}"


def main() -> int:
    """Run kills and upgrades for as many rounds as asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--agents", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="prs-"))
    try:
        with Site(directory, arguments.agents) as site, Load() as load:
            traffic = Traffic(site)
            traffic.begin(load)
            for round_ in range(arguments.rounds):
                for number in range(len(site.routers)):
                    for what in (site.kill, site.restart, site.upgrade_router):
                        print(f"round {round_}: {what.__name__} {number}", flush=True)
                        what(number)
                        load.started()
                for number in range(len(site.agents)):
                    print(f"round {round_}: upgrade_agent {number}", flush=True)
                    site.upgrade_agent(number)
                    load.started()
            load.finish(60)
            traffic.check_creations()
            print(load.rounds(), dict(traffic.statuses), f"breaks={traffic.breaks} keys={len(traffic.keys)}")
            return 0
    finally:
        if "--keep" not in sys.argv:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
