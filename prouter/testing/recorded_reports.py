"""An agent's end of a runner's reports that keeps them, and waits for them."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import gevent

from prouter.errors import InvalidRequest
from prouter.jobs import Reason
from prouter.runners import Exit, Kept, Queued, Reports, Spawned

__all__ = ["RecordedReports", "exit_problem", "spawned_problem", "until"]

T = TypeVar("T")

_POLL = 0.005


def until(condition: Callable[[], T], seconds: float, what: str) -> T:
    """Wait for a condition and return its value; other greenlets run meanwhile.

    Raises:
        AssertionError: it did not come true in time; the text says what was awaited.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        gevent.sleep(_POLL)
    return value


class RecordedReports(Reports):
    """All reports, by job and in order; those that break the interface are told.

    Args:
        fault: told, in a sentence, what is wrong with a report. The runner itself goes on as with an agent.

    Attributes:
        order: for each job the names of its reports: ``queued``, ``running``, ``exited``.
        refused_ports: ports whose reports it refuses.
        states: of all jobs, as the agent knows them: ``held``, ``starting``, ``queued``, ``running``, ``ended``,
            ``forgotten``.
        closed: whether the runner is closed.
    """

    def __init__(self, fault: Callable[[str], None] | None = None) -> None:
        self.order: dict[str, list[str]] = defaultdict(list)
        self.waits: dict[str, Queued] = {}
        self.starts: dict[str, Spawned] = {}
        self.ends: dict[str, Exit] = {}
        self.ports: dict[str, list[int]] = defaultdict(list)
        self.refused_ports: set[int] = set()
        self.states: dict[str, str] = {}
        self.closed = False
        self._fault = fault or _nobody
        self._thread = threading.get_ident()

    def opened(self, kept: Iterable[Kept]) -> None:
        """Take the jobs that `Runner.open` has returned."""
        for one in kept:
            self.states[one.job] = (
                "ended" if one.exit else "queued" if one.queued else "running" if one.spawned else "held"
            )

    def queued(self, queued: Queued) -> None:
        """See `Reports.queued`."""
        if not self._is("queued", queued, Queued):
            return
        self._expect("queued", queued.job, ("queued",))
        self.order[queued.job].append("queued")
        self.waits[queued.job] = queued

    def running(self, spawned: Spawned) -> None:
        """See `Reports.running`."""
        if not self._is("running", spawned, Spawned, spawned_problem):
            return
        self._expect("running", spawned.job, ("queued",))
        if self.states.get(spawned.job) == "queued":
            self.states[spawned.job] = "running"
        self.order[spawned.job].append("running")
        self.starts[spawned.job] = spawned

    def exited(self, end: Exit) -> None:
        """See `Reports.exited`."""
        if not self._is("exited", end, Exit, exit_problem):
            return
        self._expect("exited", end.job, ("queued", "running"))
        if self.states.get(end.job) in ("queued", "running"):
            self.states[end.job] = "ended"
        self.order[end.job].append("exited")
        self.ends[end.job] = end

    def port(self, job: str, port: int) -> None:
        """See `Reports.port`."""
        if port in self.refused_ports:
            raise InvalidRequest(f"port {port} is another program's")
        self.ports[job].append(port)

    def _is(self, name: str, told: T, kind: type[T], problem: Callable[[T], str | None] | None = None) -> bool:
        """Whether a report has the right type; if not, or if its parts are wrong, it is a fault."""
        if threading.get_ident() != self._thread:
            self._fault(
                f"reports.{name} was called in another thread: the agent's objects are the event loop's alone. Call it "
                "in a greenlet of the thread that called `open`"
            )
        if not isinstance(told, kind):
            self._fault(f"reports.{name} got {told!r} ({type(told).__name__}); it takes {kind.__name__}")
            return False
        wrong = problem(told) if problem is not None else None
        if wrong:
            self._fault(f"reports.{name} got {told!r}: {wrong}")
        return True

    def _expect(self, name: str, job: str, states: tuple[str, ...]) -> None:
        """Tell a report that comes at a wrong time."""
        state = self.states.get(job)
        if self.closed:
            self._fault(f"reports.{name} came for job {job} after `close` had returned; nothing is reported then")
        elif state not in states:
            self._fault(f"reports.{name} came for job {job}, {_WRONG_TIME.get((name, state), _STATES[state])}")


_STATES: dict[str | None, str] = {
    None: "which the agent does not know (yet): report nothing before `open`, `hold` or `spawn` has returned",
    "held": "which is held, and was not started",
    "starting": "before `spawn` had returned; report it afterwards",
    "queued": "which waits in the queue",
    "running": "which runs: only a start that `spawn` or `open` gave as Queued is reported",
    "ended": "whose end the agent knows already: it was reported, or returned by `open`",
    "forgotten": "after `forget` had returned; nothing is reported then",
}
_WRONG_TIME: dict[tuple[str, str | None], str] = {
    ("exited", "ended"): "a second time, or for an end that `open` has returned: each end is told once",
    ("running", "ended"): "after its end: `running` comes first, and only for starts that were Queued",
}


def spawned_problem(spawned: Any) -> str | None:
    """What is wrong with the parts of a `Spawned`; None if nothing is."""
    if type(spawned.pid) is not int or spawned.pid <= 0:
        return "pid is the number of the first process where it runs"
    if type(spawned.start_time) is not int:
        return "start_time is a whole number of clock ticks"
    if not isinstance(spawned.started_at, int | float):
        return "started_at is a number of seconds since the epoch"
    return None if spawned.node is None or isinstance(spawned.node, str) else "node is a name, or None"


def exit_problem(end: Any) -> str | None:
    """What is wrong with the parts of an `Exit`; None if nothing is."""
    if end.exit_code is not None and (type(end.exit_code) is not int or not 0 <= end.exit_code <= 255):
        return "exit_code is a number from 0 to 255, or None"
    if end.signal is not None and not (isinstance(end.signal, str) and end.signal.startswith("SIG")):
        return "signal is a name such as SIGTERM, or None"
    if end.exit_code is not None and end.signal is not None:
        return "a process that died of a signal has no exit code: one of both is None"
    if end.reason is not None and end.reason not in _REASONS:
        return f"reason is None, if the exit status tells all, or one of {', '.join(sorted(_REASONS))}"
    numbers = (end.cpu_seconds, end.max_rss, end.at)
    if any(isinstance(one, bool) or not isinstance(one, int | float) for one in numbers):
        return "cpu_seconds, max_rss (bytes) and at (seconds since the epoch) are numbers"
    return None


_REASONS = frozenset(
    one.value
    for one in (
        Reason.MEMORY,
        Reason.CPU,
        Reason.PROCESSES,
        Reason.WALLTIME,
        Reason.NODE_FAILED,
        Reason.PREEMPTED,
        Reason.CANCELLED,
        Reason.AGENT_LOST,
        Reason.START_FAILED,
        Reason.PORT_TAKEN,
    )
)
"""Reasons that a runner may give (`Exit`); the others are the agent's own."""


def _nobody(fault: str) -> None:
    raise AssertionError(fault)
