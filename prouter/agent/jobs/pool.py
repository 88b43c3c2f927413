"""The pool: jobs of templates that are started before anybody asks for them, and given to whoever asks first.

A warm job is a job like any other, with its own uid, sandbox and user, but nobody's: routers are not told of it, and it
gives way to a job that needs its slot, its resources or its user. A job that was taken never returns. One greenlet
starts warm jobs, one after another; after a failure it lets the template rest, longer each time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import gevent
from gevent.event import AsyncResult, Event

from prouter.agent.jobs.state.job import Job
from prouter.agent.jobs.state.refusals import outcome_of
from prouter.errors import LimitReached, PRouterError
from prouter.jobs import JobRecord
from prouter.resources import Amounts, add

__all__ = ["SLOT", "Figures", "Pool"]

_FIRST_REST = 1.0
_LONGEST_REST = 300.0
"""Seconds for which a template rests after its first failure, and at most; each further one doubles the time."""
_PAUSE = 0.5
"""Seconds for which it rests after a job was taken: the next start must not slow down the first use of that one."""
_NO_SPACE_REST = 5.0
"""Seconds for which it rests if the agent has no user for another job."""
_STEADY = 60.0
"""Seconds after which the end of a warm job is no sign that its template is broken."""
_CLOSE_TIMEOUT = 5.0
"""Seconds that a closing agent waits for the removal of warm jobs."""
_REMOVAL_REST = 5.0
"""Seconds between attempts to remove a warm job."""

SLOT = ""
"""Stands for a slot among names of resources."""

Figures = dict[str, dict[str, int]]
"""By template: ``size``, how many are ``ready``, and ``failures`` since the last job that was ready for long or taken.
"""

_log = logging.getLogger("prouter.agent")


@dataclass
class _Shelf:
    """The warm jobs of one template.

    Attributes:
        resources: what each job takes.
        ready: with the time at which each became ready, the oldest first.
        warming: the one that is being started.
        rests_until: monotonic time before which none is started.
    """

    name: str
    size: int
    resources: Amounts
    ready: dict[Job, float] = field(default_factory=dict)
    warming: Job | None = None
    failures: int = 0
    rests_until: float = 0.0

    @property
    def jobs(self) -> int:
        """How many there are or will be."""
        return len(self.ready) + (self.warming is not None)

    def takes(self, some: Collection[str]) -> bool:
        """Whether its jobs take a slot or one of these resources."""
        return SLOT in some or any(self.resources.get(name) for name in some)

    @property
    def steady(self) -> bool:
        """Whether a job has been ready for long, so that earlier failures do not count."""
        return any(time.monotonic() - since >= _STEADY for since in self.ready.values())


class Pool:
    """The warm jobs of one agent.

    Args:
        templates: how many jobs of each are kept ready, and what each job takes.
        make: makes a warm job of a template for a connection, and begins to start it.
        remove: begins to end and remove a job.
        lacks: what is missing for so many warm jobs, which take these resources together: names, `SLOT` for slots.
        changed: called whenever `figures` change.
    """

    def __init__(
        self,
        templates: Mapping[str, tuple[int, Amounts]],
        *,
        make: Callable[[str, str], Job],
        remove: Callable[[Job], AsyncResult[JobRecord]],
        lacks: Callable[[int, Amounts], set[str]],
        changed: Callable[[], None],
    ) -> None:
        self._shelves = {name: _Shelf(name, *said) for name, said in templates.items()}
        self._make = make
        self._remove = remove
        self._lacks = lacks
        self._changed = changed
        self._connection: str | None = None
        self._accepts = True
        self._closed = False
        self._leaving: set[gevent.Greenlet[..., None]] = set()
        """Those that see warm jobs removed."""
        self._woken = Event()
        self._greenlet: gevent.Greenlet[[], None] | None = None

    # -- life ---------------------------------------------------------------------------------------------------------

    def serve(self, connection: str) -> None:
        """Begin to keep jobs ready, for the first connection that there is: the jobs' paths are made from it."""
        if self._connection is None and any(shelf.size for shelf in self._shelves.values()):
            self._connection = connection
            self._greenlet = gevent.spawn(self._run)

    def accept(self, on: bool) -> None:
        """End all warm jobs and start none, because the agent takes no new jobs; or go on."""
        self._accepts = on
        if not on:
            self._empty()
        self.wake()

    def close(self) -> None:
        """End all warm jobs, and wait for that: the next agent starts its own."""
        self._accepts, self._closed = False, True
        self._empty()
        if self._greenlet is not None:
            self._greenlet.kill()
        gevent.wait(list(self._leaving), timeout=_CLOSE_TIMEOUT)

    def wake(self) -> None:
        """Look again whether there is space for another job."""
        self._woken.set()

    def figures(self, connection: str) -> Figures:
        """What the routers of a connection are told."""
        return {
            shelf.name: {
                "size": shelf.size,
                "ready": len(shelf.ready) if connection == self._connection else 0,
                "failures": shelf.failures,
            }
            for shelf in self._shelves.values()
        }

    # -- jobs that leave ----------------------------------------------------------------------------------------------

    def take(self, name: str, connection: str) -> Job | None:
        """Give away the oldest job of a template that is ready; None if there is none for this connection."""
        shelf = self._shelves.get(name)
        if shelf is None or not shelf.ready or connection != self._connection:
            return None
        job = next(iter(shelf.ready))
        del shelf.ready[job]
        shelf.failures = 0
        shelf.rests_until = max(shelf.rests_until, time.monotonic() + _PAUSE)
        self._told()
        return job

    def give_way(self) -> None:
        """End the warm jobs that are in the way of others, and wait until they have ended."""
        for answer in self.fit():
            answer.wait()

    def free_user(self) -> bool:
        """End a warm job, so that its user is free, and wait for that; return whether there was one."""
        answer = self._end_one()
        if answer is None:
            return False
        answer.wait()
        return True

    def ended(self, job: Job) -> None:
        """Note that a warm job has ended by itself."""
        if self._closed:
            return
        for shelf in self._shelves.values():
            since = shelf.ready.pop(job, None)
            if since is not None:
                if time.monotonic() - since >= _STEADY:
                    shelf.failures = 0
                self._failed(shelf, "it ended before anybody asked for it")
                self._drop([job])

    def _end_one(self, lacking: Collection[str] = (SLOT,)) -> AsyncResult[JobRecord] | None:
        """End the youngest job of the template that has most, of those that take some of what is lacking."""
        shelves = [one for one in self._shelves.values() if one.jobs and one.takes(lacking)]
        shelf = max(shelves, key=lambda one: one.jobs, default=None)
        if shelf is None:
            return None
        if shelf.warming is not None:
            job, shelf.warming = shelf.warming, None
        else:
            job, _ = shelf.ready.popitem()
        _log.info("event=warm_job_gives_way job=%s template=%s", job.uid, shelf.name)
        self._told()
        return self._drop([job])[0]

    def fit(self) -> list[AsyncResult[JobRecord]]:
        """Begin to end the warm jobs for which there are not enough slots or resources; return their removals."""
        ending: list[AsyncResult[JobRecord]] = []
        while (short := self._short()) and (answer := self._end_one(short)) is not None:
            ending.append(answer)
        return ending

    def _short(self, more: _Shelf | None = None) -> set[str]:
        """What is missing for the warm jobs that there are, and for one more of a template."""
        jobs, amounts = 0, dict[str, float]()
        for shelf in self._shelves.values():
            count = shelf.jobs + (shelf is more)
            jobs += count
            if count:
                add(amounts, {name: count * amount for name, amount in shelf.resources.items()})
        return self._lacks(jobs, amounts) if jobs else set()

    def _empty(self) -> None:
        jobs: list[Job] = []
        for shelf in self._shelves.values():
            jobs += [*shelf.ready, *([shelf.warming] if shelf.warming is not None else [])]
            shelf.ready.clear()
            shelf.warming = None
        self._told()
        self._drop(jobs)

    def _drop(self, jobs: Iterable[Job]) -> list[AsyncResult[JobRecord]]:
        answers = [(job, self._remove(job)) for job in jobs]
        for job, answer in answers:
            greenlet = gevent.spawn(self._see_removed, job, answer)
            self._leaving.add(greenlet)
            greenlet.rawlink(self._leaving.discard)
        return [answer for _, answer in answers]

    def _see_removed(self, job: Job, answer: AsyncResult[JobRecord]) -> None:
        """Remove a job again until that succeeds: nobody else would."""
        while True:
            try:
                answer.get()
            except PRouterError as error:
                _log.warning("event=warm_job_not_removed job=%s error=%r", job.uid, error.logged)
                gevent.sleep(_REMOVAL_REST)
                answer = self._remove(job)
            else:
                self.wake()
                return

    # -- jobs that are started ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._woken.clear()
            shelf = self._next()
            if shelf is not None:
                self._warm(shelf)
            else:
                self._woken.wait(self._rest())

    def _next(self) -> _Shelf | None:
        """The template that lacks most, if another job may be started now."""
        if not self._accepts:
            return None
        now = time.monotonic()
        lacking = [shelf for shelf in self._shelves.values() if shelf.jobs < shelf.size and shelf.rests_until <= now]
        return min(
            [shelf for shelf in lacking if not self._short(shelf)],
            key=lambda shelf: shelf.jobs / shelf.size,
            default=None,
        )

    def _rest(self) -> float | None:
        """Seconds until a template has rested; None if none rests."""
        now = time.monotonic()
        resting = [
            shelf.rests_until - now
            for shelf in self._shelves.values()
            if shelf.jobs < shelf.size and shelf.rests_until > now
        ]
        return min(resting, default=None)

    def _warm(self, shelf: _Shelf) -> None:
        assert self._connection is not None
        job = None
        began = time.monotonic()
        try:
            job = shelf.warming = self._make(shelf.name, self._connection)
            outcome_of(job.started)
        except LimitReached:
            shelf.rests_until = time.monotonic() + _NO_SPACE_REST
        except PRouterError as error:
            if job is None or shelf.warming is job:
                self._failed(shelf, error.logged)
                self._drop([job] if job is not None else [])
        except Exception:
            _log.exception("event=warming_broke template=%s", shelf.name)
            self._failed(shelf, "internal error of the agent")
            self._drop([job] if job is not None else [])
        else:
            if shelf.warming is job:
                self._warmed(shelf, job, time.monotonic() - began)
        finally:
            if shelf.warming is job:
                shelf.warming = None

    def _warmed(self, shelf: _Shelf, job: Job, took: float) -> None:
        shelf.warming = None
        if job.record.ended:  # Between its start and now.
            self._failed(shelf, "it ended as soon as it was ready")
        if job.record.ended or not self._accepts:
            self._drop([job])
            return
        if shelf.steady:
            shelf.failures = 0
        shelf.ready[job] = time.monotonic()
        _log.info("event=job_warm job=%s template=%s after=%.1f", job.uid, shelf.name, took)
        self._told()
        self.fit()  # The slots may have been taken while the job was made.

    def _failed(self, shelf: _Shelf, why: str) -> None:
        shelf.failures += 1
        rest = min(_LONGEST_REST, _FIRST_REST * 2.0 ** min(shelf.failures - 1, 16))
        shelf.rests_until = time.monotonic() + rest
        _log.warning(
            "event=warming_failed template=%s failures=%d retry_after=%g reason=%r",
            shelf.name,
            shelf.failures,
            rest,
            why,
        )
        self._told()

    def _told(self) -> None:
        self._changed()
        self.wake()
