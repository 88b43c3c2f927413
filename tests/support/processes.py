"""Real processes for tests, which print a line when they are ready and are always ended afterwards."""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import requests

__all__ = ["Agent", "Process", "Router", "processes_with", "start_agent", "start_joined", "start_router", "wait_until"]

Value = TypeVar("Value")

START_DEADLINE = 60.0


def processes_with(text: str) -> list[int]:
    """Return the pids of live processes whose command line or environment holds `text`."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            known = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in known:
            found.append(int(entry.name))
    return found


def wait_until(condition: Callable[[], Value], deadline: float = 20.0, what: str = "") -> Value:
    """Call `condition` until it returns something true, for at most `deadline` seconds; return that.

    Raises:
        AssertionError: it never was true.
    """
    end = time.monotonic() + deadline
    pause = 0.005
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline:g} s: {what or condition}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)


def _ends_with_tests() -> list[str]:
    """Return a prefix for commands that must not outlive the test run (PR_SET_PDEATHSIG works per thread)."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM"] if setpriv and threading.current_thread() is threading.main_thread() else []


class Process:
    """A child process whose stdout is read line by line and whose stderr goes to a file."""

    def __init__(
        self, argv: Sequence[str], log: Path, environment: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PROUTER_")}
        self.log = log
        self._lines: queue.Queue[str | None] = queue.Queue()
        with log.open("ab") as stream:
            self.popen = subprocess.Popen(
                [*_ends_with_tests(), *argv],
                stdout=subprocess.PIPE,
                stderr=stream,
                stdin=subprocess.DEVNULL,
                env={**kept, **(environment or {})},
                start_new_session=True,
                cwd=cwd,
            )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self._lines.put(line.decode(errors="replace").rstrip("\n"))
        self._lines.put(None)

    @property
    def pid(self) -> int:
        return self.popen.pid

    def wait_line(self, pattern: str, deadline: float = START_DEADLINE) -> re.Match[str]:
        """Wait for a line on stdout that matches; return it.

        Raises:
            AssertionError: none came in time, or the process ended before.
        """
        end = time.monotonic() + deadline
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no line like {pattern!r} within {deadline:g} s\n{self.log_end()}") from None
            if line is None:
                raise AssertionError(f"ended without a line like {pattern!r}\n{self.log_end()}")
            match = re.search(pattern, line)
            if match:
                return match

    def log_end(self, size: int = 4000) -> str:
        """Return the end of its stderr."""
        return self.log.read_text(errors="replace")[-size:]

    def kill(self) -> None:
        """Kill it, as a crash would."""
        self.popen.kill()
        self.popen.wait(10)

    def stop(self, deadline: float = 20.0) -> int:
        """Send TERM, and KILL if that does not help; return the exit status. Idempotent."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGCONT)
            self.popen.terminate()
            try:
                self.popen.wait(deadline)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait(10)
        assert self.popen.stdout is not None
        return self.popen.returncode


class Router(Process):
    """A running ``prouter up``.

    Attributes:
        url: base URL of its control endpoint.
        agents: ``host:port`` for agents.
    """

    def __init__(self, directory: Path, sets: Mapping[str, Any], workers: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._killed = 0
        values = {
            "control.port": 0,
            "server.port": 0,
            "state.dir": str(directory / "state"),
            "state.run_dir": str(directory / "run"),
            "control.drain_delay": 0,
            "control.drain_timeout": 5,
            **sets,
        }
        argv = [sys.executable, "-m", "prouter", "up", "--workers", str(workers)]
        for key, value in values.items():
            argv += ["--set", f"{key}={value!r}"]
        super().__init__(argv, directory / "router.log")
        try:
            match = self.wait_line(r"^ready control=(http://\S+) agents=(?:tcp://)?(\S+)")
        except BaseException:
            self.stop()
            raise
        self.url = match[1]
        self.agents = match[2]

    @property
    def key_file(self) -> str:
        """File with the router's public key."""
        return str(self.directory / "state" / "keys" / "router.key")

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=options.pop("timeout", 30), **options)

    def post(self, path: str, body: Any = None, **options: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=options.pop("timeout", 30), **options)

    def child(self, name: str) -> int:
        """Return the pid of the child ``broker`` or ``gunicorn`` (its parent process) from the log."""
        found = re.findall(rf"event=child_started child={name} pid=(\d+)", self.log.read_text())
        return int(found[-1])

    def kill_broker(self) -> None:
        """Kill the broker, as a crash would. If the last one that was killed is not replaced yet, wait until it is."""
        wait_until(lambda: self.child("broker") != self._killed, what="a new broker")
        self._killed = self.child("broker")
        os.kill(self._killed, signal.SIGKILL)

    def create(self, agent: str, name: str = "test") -> str:
        """Create a job; return its path."""
        answer = self.post("/jobs/create", {"name": name, "agent": {"type": "uid", "uid": agent}})
        assert answer.status_code == 200, answer.text
        path = answer.json()["path"]
        assert isinstance(path, str)
        return path

    def start(self, path: str, args: Sequence[str], **options: Any) -> dict[str, Any]:
        """Start a job; return its info."""
        answer = self.post(path + "/start", {"args": list(args), "env": {}, **options}, timeout=60)
        assert answer.status_code == 200, answer.text
        info: dict[str, Any] = answer.json()
        return info

    def serve(self, agent: str, script: Path, **expose: Any) -> str:
        """Create and start a job server that reads its port from ``$PORT``; return its path."""
        path = self.create(agent, script.stem)
        self.start(path, [sys.executable, str(script)], expose={"port": "assign", **expose})
        return path


class Agent(Process):
    """A running ``prouter agent``.

    Attributes:
        uid: its uid.
        ready: the rest of its ready line: `` listen=…`` and `` control=…`` where it has those.
    """

    def __init__(
        self,
        directory: Path,
        address: str | None,
        sets: Mapping[str, Any],
        prefix: Sequence[str] = (),
        arguments: Sequence[str] = (),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        values = {
            **({"client.address": address} if address is not None else {}),
            "client.reconnect_delay": 0.1,
            "client.reconnect_delay_max": 0.2,
            "jobs.root": str(directory / "jobs"),
            "state.dir": str(directory / "state"),
            **sets,
        }
        argv = [*prefix, sys.executable, "-m", "prouter", "agent", *arguments]
        for key, value in values.items():
            argv += ["--set", f"{key}={value!r}"]
        super().__init__(argv, directory / "agent.log")
        try:
            match = self.wait_line(r"^ready agent=(\S+)(.*)")
        except BaseException:
            self.stop()
            raise
        self.uid = match[1]
        self.ready = match[2]


def start_joined(directory: Path, *arguments: str, **sets: Any) -> Agent:
    """An agent that links to the routers that it joined, with more options on its command line."""
    return Agent(directory, None, {key.replace("__", "."): value for key, value in sets.items()}, arguments=arguments)


def start_router(directory: Path, *, workers: int = 2, **sets: Any) -> Router:
    """A router in `directory`; configuration keys as ``section__key=value``."""
    return Router(directory, {key.replace("__", "."): value for key, value in sets.items()}, workers)


def link_settings(router: Router, transport: str) -> dict[str, Any]:
    """Settings of an agent that links to `router` over ``tcp``, ``ipc`` or, encrypted over tcp, ``curve``."""
    if transport == "ipc":
        return {"client__address": f"ipc://{router.directory}/run/agents.sock"}
    return {"client__router_key": router.key_file} if transport == "curve" else {}


def start_agent(directory: Path, router: Router | str, *, prefix: Sequence[str] = (), **sets: Any) -> Agent:
    """An agent in `directory`, linked to `router` (or to ``host:port``), its command line begun with `prefix`."""
    address = router if isinstance(router, str) else router.agents
    return Agent(directory, address, {key.replace("__", "."): value for key, value in sets.items()}, prefix)
