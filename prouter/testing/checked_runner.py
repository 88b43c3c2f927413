"""A runner around the one that is tested, which holds each of its answers to the interface.

A wrong type or an error that no caller expects would show up later, in another place, as something else. Here the test
fails at the call, and the text says what the interface asks for.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import gevent

from prouter.errors import PRouterError
from prouter.runners import (
    Address,
    Kept,
    Limits,
    Listener,
    Queued,
    Reports,
    Runner,
    Sockets,
    Spawned,
    SpawnSpec,
    Usage,
    checked,
)
from prouter.testing.recorded_reports import RecordedReports, exit_problem, spawned_problem

__all__ = ["CheckedRunner"]

T = TypeVar("T")

_FAMILIES = ("ipv4", "ipv6", "unix")


class CheckedRunner(Runner):
    """The runner that is tested; each method fails the test if the runner breaks the interface in it.

    Args:
        patience: seconds within which a method has to return, besides those that it is told to wait.
    """

    def __init__(self, runner: Runner, patience: float) -> None:
        self._runner = checked(runner)
        self._patience = patience
        self._recorded = RecordedReports()
        self.capabilities = runner.capabilities

    def open(self, reports: Reports) -> list[Kept]:
        """See `Runner.open`."""
        assert isinstance(reports, RecordedReports), "the suite records reports"
        kept = self._call("open", lambda: self._runner.open(reports))
        self._expect("open", kept, isinstance(kept, list) and all(isinstance(one, Kept) for one in kept), "list[Kept]")
        for one in kept:
            problem = _kept_problem(one)
            assert problem is None, f"open returned {one!r}: {problem}"
        self._recorded = reports
        reports.opened(kept)
        return kept

    def check(self, limits: Limits, resources: Mapping[str, float], options: Mapping[str, Any]) -> None:
        """See `Runner.check`."""
        self._call("check", lambda: _at_once("check", lambda: self._runner.check(limits, resources, options)))

    def hold(self, job: str, record: dict[str, Any], remove_on_loss: str | None) -> None:
        """See `Runner.hold`."""
        self._call("hold", lambda: self._runner.hold(job, record, remove_on_loss))
        self._recorded.states[job] = "held"

    def spawn(self, spec: SpawnSpec, wait: float) -> Spawned | Queued:
        """See `Runner.spawn`."""
        states, before = self._recorded.states, self._recorded.states.get(spec.job)
        if before in (None, "held"):
            states[spec.job] = "starting"
        try:
            placed = self._call("spawn", lambda: self._runner.spawn(spec, wait), wait)
        except BaseException:
            if states.get(spec.job) == "starting":
                states.pop(spec.job)
                states.update({spec.job: before} if before is not None else {})
            raise
        self._expect("spawn", placed, isinstance(placed, Spawned | Queued), "Spawned or Queued")
        assert placed.job == spec.job, f"spawn was to start job {spec.job}, and returned {placed!r} of another one"
        if isinstance(placed, Queued):
            assert self.capabilities.queues, "spawn returned Queued: set Capabilities.queues, so that agents expect it"
        else:
            problem = spawned_problem(placed)
            assert problem is None, f"spawn returned {placed!r}: {problem}"
        states[spec.job] = "queued" if isinstance(placed, Queued) else "running"
        return placed

    def update_record(self, job: str, record: dict[str, Any]) -> None:
        """See `Runner.update_record`."""
        self._call("update_record", lambda: self._runner.update_record(job, record))

    def signal(self, job: str, signum: int, *, tree: bool = True) -> None:
        """See `Runner.signal`."""
        self._call("signal", lambda: self._runner.signal(job, signum, tree=tree))

    def kill(self, job: str) -> None:
        """See `Runner.kill`."""
        self._call("kill", lambda: self._runner.kill(job))

    def usage(self, job: str) -> Usage:
        """See `Runner.usage`."""
        usage = self._call("usage", lambda: self._runner.usage(job))
        self._expect("usage", usage, isinstance(usage, Usage), "Usage")
        return usage

    def processes(self, job: str) -> list[int]:
        """See `Runner.processes`."""
        pids = self._call("processes", lambda: self._runner.processes(job))
        right = isinstance(pids, list) and all(type(pid) is int for pid in pids)
        self._expect("processes", pids, right, "list[int]")
        return pids

    def exiting(self, job: str) -> bool:
        """See `Runner.exiting`."""
        exiting = self._call("exiting", lambda: _at_once("exiting", lambda: self._runner.exiting(job)))
        self._expect("exiting", exiting, isinstance(exiting, bool), "bool")
        return exiting

    def listeners(self, job: str) -> Sockets:
        """See `Runner.listeners`."""
        sockets = self._call("listeners", lambda: self._runner.listeners(job))
        self._expect("listeners", sockets, isinstance(sockets, Sockets), "Sockets")
        for one in (*sockets.own, *sockets.foreign):
            right = isinstance(one, Listener) and one.family in _FAMILIES
            self._expect("listeners", one, right, f"Listener of {', '.join(_FAMILIES)}")
        return sockets

    def find(self, job: str, port: int) -> Address:
        """See `Runner.find`."""
        address = self._call("find", lambda: self._runner.find(job, port))
        self._expect("find", address, isinstance(address, Address), "Address")
        return address

    def connect_at_once(self, job: str, address: Address) -> socket.socket | None:
        """See `Runner.connect_at_once`."""
        connect = self._runner.connect_at_once
        connection = self._call("connect_at_once", lambda: _at_once("connect_at_once", lambda: connect(job, address)))
        return None if connection is None else self._connected("connect_at_once", connection)

    def connect(self, job: str, address: Address, timeout: float, *, assigned: bool = False) -> socket.socket:
        """See `Runner.connect`."""
        connect = self._runner.connect
        made = self._call("connect", lambda: connect(job, address, timeout, assigned=assigned), timeout, OSError)
        return self._connected("connect", made)

    def forget(self, job: str) -> None:
        """See `Runner.forget`."""
        self._call("forget", lambda: self._runner.forget(job))
        self._recorded.states[job] = "forgotten"

    def leave_death_notice(self, argv: list[str], environment: dict[str, str], text: str) -> None:
        """See `Runner.leave_death_notice`."""
        self._call("leave_death_notice", lambda: self._runner.leave_death_notice(argv, environment, text))

    def close(self, *, end_jobs: bool) -> None:
        """See `Runner.close`."""
        self._call("close", lambda: self._runner.close(end_jobs=end_jobs))
        self._recorded.closed = True

    def _call(self, name: str, call: Callable[[], T], wait: float = 0.0, *more: type[Exception]) -> T:
        """Call a method, in time, and let only those errors through that its callers expect."""
        seconds = wait + self._patience
        expected: tuple[type[Exception], ...] = (PRouterError, AssertionError, *more)
        late = AssertionError(f"{name} did not return within {seconds:g} s; it must not wait for what may not come")
        try:
            with gevent.Timeout(seconds, late):
                return call()
        except expected:
            raise
        except Exception as error:
            also = " or OSError" if more else ""
            raise AssertionError(
                f"{name} raised {type(error).__name__}: {error}. It may raise those errors of prouter.runners{also} "
                f"that the docstring of Runner.{name} lists, and AgentUnavailable"
            ) from error

    def _connected(self, name: str, connection: socket.socket) -> socket.socket:
        right = isinstance(connection, socket.socket)
        self._expect(name, connection, right, "the kernel's own socket.socket, or one end of a socketpair")
        assert not connection.getblocking(), f"{name} returned a socket that blocks: call setblocking(False) on it"
        return connection

    @staticmethod
    def _expect(name: str, value: object, right: bool, expected: str) -> None:
        assert right, f"{name} returned {value!r} ({type(value).__name__}); it has to return {expected}"


def _at_once(name: str, call: Callable[[], T]) -> T:
    """Call a method that must not block. Another greenlet, which is ready, runs only if it does."""
    blocked = False

    def run() -> None:
        nonlocal blocked
        blocked = True

    other = gevent.spawn(run)
    try:
        return call()
    finally:
        other.kill(block=False)
        assert not blocked, f"{name} blocked its greenlet; it must decide at once, by what is in memory"


def _kept_problem(kept: Kept) -> str | None:
    if kept.spawned is not None and (problem := spawned_problem(kept.spawned)):
        return problem
    if kept.exit is not None and (problem := exit_problem(kept.exit)):
        return problem
    if kept.queued is not None and (kept.spawned is not None or kept.exit is not None):
        return "a job that runs or has ended does not wait: leave `queued` None"
    if any(part is not None and part.job != kept.job for part in (kept.spawned, kept.exit, kept.queued)):
        return "its parts are those of another job"
    return None if isinstance(kept.record, dict) else "the record is the dict that `hold` or `update_record` got"
