"""Light agents in as many processes as their descriptors need, started, counted and ended together."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from dataclasses import asdict

from tests.bench.load import LoadFailed
from tests.bench.scale.light_agents import DESCRIPTORS, Plan, Report
from tests.bench.stack import ROOT

__all__ = ["Fleet", "most_agents"]

_MOST = 10_000
"""Agents of one process at most: its libzmq has one I/O thread."""
_SPARE = 500
"""Descriptors of a process for other things than agents."""


def descriptors() -> int:
    """How many descriptors a process may have."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 1 << 20 if hard == resource.RLIM_INFINITY else hard


def most_agents() -> int:
    """How many agents a broker can hold with the descriptors that this system gives a process."""
    return descriptors() - _SPARE


class Fleet:
    """Light agents of one router.

    Args:
        endpoint: ``tcp://HOST:PORT`` of the router.
        key: its public key; empty without encryption.
        agents: how many there may be.
        jobs: running jobs that each tells.
    """

    def __init__(self, endpoint: str, key: str, agents: int, jobs: int = 0) -> None:
        each = min(_MOST, (descriptors() - _SPARE) // DESCRIPTORS)
        count = -(-agents // each)
        self._shares = [agents // count + (number < agents % count) for number in range(count)]
        self._parts = [
            _Part(
                Plan(
                    endpoint=endpoint.removeprefix("tcp://"),
                    source=f"127.0.0.{2 + number}",
                    key=key,
                    first=sum(self._shares[:number]),
                    jobs=jobs,
                )
            )
            for number in range(count)
        ]
        self._most = agents

    def grow(self, agents: int) -> None:
        """Dial until there are so many; all processes have a part of them."""
        for part, share in zip(self._parts, self._shares, strict=True):
            part.command(f"agents {-(-agents * share // self._most)}")

    def tell_load(self, seconds: float) -> None:
        """Have each agent tell its load every so often; 0 for never."""
        for part in self._parts:
            part.command(f"load {seconds}")

    def ping(self, times: int) -> None:
        """Have each agent send so many PINGs as fast as that goes, and wait until all are sent."""
        for part in self._parts:
            part.command(f"ping {times}")
        while self.report.pings:
            threading.Event().wait(0.1)

    @property
    def report(self) -> Report:
        """The counters of all processes together.

        Raises:
            LoadFailed: a process has ended.
        """
        total = Report()
        for part in self._parts:
            one = part.report
            for name in ("dialled", "linked", "attempts", "pings", "lost", "refused"):
                setattr(total, name, getattr(total, name) + getattr(one, name))
            total.at = max(total.at, one.at)
        return total

    def await_linked(self, agents: int, seconds: float) -> list[tuple[float, int]]:
        """Wait until so many are linked; the number that were after each tenth of a second.

        Returns:
            Pairs of seconds since this call and agents; the last one has the time at which all were linked.

        Raises:
            LoadFailed: they were not, within `seconds`.
        """
        began = time.monotonic()
        seen: list[tuple[float, int]] = []
        while True:
            report, now = self.report, time.monotonic() - began
            if report.linked >= agents:
                return [*seen, (max(0.0, report.at - began), report.linked)]
            seen.append((now, report.linked))
            if now > seconds:
                raise LoadFailed(f"{report.linked} of {agents} agents are linked after {seconds:g} s: {report}")
            threading.Event().wait(0.1)

    def close(self) -> None:
        """End all processes."""
        for part in self._parts:
            part.close()


class _Part:
    """One process."""

    def __init__(self, plan: Plan) -> None:
        self._report = Report()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.scale.light_agents", json.dumps(asdict(plan))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self._report = Report(**json.loads(line))

    @property
    def report(self) -> Report:
        """The last counters."""
        if self._child.poll() is not None:
            raise LoadFailed(f"a process of light agents ended with {self._child.returncode}")
        return self._report

    def command(self, line: str) -> None:
        """Send a command."""
        assert self._child.stdin is not None
        self._child.stdin.write(line.encode() + b"\n")
        self._child.stdin.flush()

    def close(self) -> None:
        """End the process."""
        self._child.kill()
        self._child.wait()
        self._reader.join(5)
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()
