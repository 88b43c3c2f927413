"""Parked waits: calls of workers that are answered when a job ends, or when their time is up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice

from prouter.broker.base.env import Env
from prouter.broker.base.timers import Timer
from prouter.errors import Overloaded

__all__ = ["Waits"]

Answer = Callable[[bool], None]
"""Called at the end of a wait with whether the job has ended."""


@dataclass(slots=True)
class _Wait:
    job: str
    answer: Answer
    timer: Timer | None = None


class Waits:
    """All parked waits, by worker and call id."""

    def __init__(self, env: Env) -> None:
        self._env = env
        self._waits: dict[str, dict[str, _Wait]] = {}
        self._by_job: dict[str, dict[tuple[str, str], _Wait]] = {}
        self._ending: set[str] = set()
        """Jobs that have ended and whose waits are answered in the next event loop iterations."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def park(self, worker: str, call_id: str, job: str, until: float | None, answer: Answer) -> None:
        """Park a call until `job` ends.

        Args:
            until: when the wait ends at the latest (monotonic seconds), None for never.
            answer: called once.

        Raises:
            Overloaded: too many are parked already.
        """
        if self._count >= self._env.settings.bounds.waits:
            raise Overloaded("too many requests wait for jobs", retry_after=5)
        wait = _Wait(job, answer)
        if until is not None:
            wait.timer = self._env.timers.at(until, partial(self._time_is_up, worker, call_id))
        self._waits.setdefault(worker, {})[call_id] = wait
        self._by_job.setdefault(job, {})[(worker, call_id)] = wait
        self._count += 1

    def job_ended(self, job: str) -> None:
        """Answer all waits for a job, some now and the others in the next event loop iterations."""
        some = list(islice(self._by_job.get(job, {}).items(), self._env.settings.bounds.iteration))
        for (worker, call_id), wait in some:
            self._take(worker, call_id)
            wait.answer(True)
        if job in self._by_job and job not in self._ending:
            self._ending.add(job)
            self._env.timers.at(self._env.now, partial(self._go_on, job))

    def _go_on(self, job: str, now: float) -> None:
        self._ending.discard(job)
        self.job_ended(job)

    def cancel(self, worker: str, call_id: str) -> bool:
        """Drop a wait whose client disconnected; return whether there was one."""
        return self._take(worker, call_id) is not None

    def of_worker(self, worker: str) -> list[str]:
        """Call ids of a worker's waits."""
        return list(self._waits.get(worker, {}))

    def worker_gone(self, worker: str) -> int:
        """Drop the waits of a worker that has ended; return how many."""
        calls = self.of_worker(worker)
        for call_id in calls:
            self._take(worker, call_id)
        return len(calls)

    def _time_is_up(self, worker: str, call_id: str, now: float) -> None:
        wait = self._take(worker, call_id)
        if wait is not None:
            wait.answer(False)

    def _take(self, worker: str, call_id: str) -> _Wait | None:
        waits = self._waits.get(worker)
        wait = waits.pop(call_id, None) if waits is not None else None
        if wait is None or waits is None:
            return None
        if not waits:
            del self._waits[worker]
        of_job = self._by_job[wait.job]
        del of_job[(worker, call_id)]
        if not of_job:
            del self._by_job[wait.job]
        if wait.timer is not None:
            wait.timer.cancel()
        self._count -= 1
        return wait
