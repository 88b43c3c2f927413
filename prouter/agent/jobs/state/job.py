"""One job of an agent: its record, which only `Job.change` replaces, and what else the agent knows of it.

The table `NEXT` says which state may follow which; it is the whole life of a job::

    NEW ──► PENDING ──► RUNNING ──► FINISHED ──► CLOSED
     │         └───────────────────────▲ ▲          ▲
     ├──► RUNNING (no port is awaited)   │          │
     ├──► FINISHED (could not be started)┘          │
     └──► CLOSED (removed before it was started) ───┘

A job whose start waits in the queue of its runner stays NEW and has a `JobRecord.queue`, which makes its phase
``queued``: `Job.queued` enters this sub-state, any change of the state leaves it::

    NEW ──► NEW, queued ──► as from NEW (its turn came, it was ended or cancelled)
               ▲  └── another reason, or another expected start
               └───┘

A job that is removed while it runs is FINISHED first, with the reason ``removed``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gevent import Greenlet
from gevent.event import AsyncResult, Event

from prouter.agent.expose.exposure import Exposure
from prouter.agent.logs.job_log import JobLog
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.agent.sandbox.scratch import SCRATCH_NAME, Scratch
from prouter.errors import PRouterError, StartFailed
from prouter.jobs import JobRecord, Reason, State, bounded
from prouter.keeper.log_gaps import LOG_FILES
from prouter.processes.users import User
from prouter.requests import Limits, StartRequest, validated
from prouter.runners.interface import Exit, Queued, Spawned

__all__ = ["NEXT", "Job"]

NEXT: dict[State, frozenset[State]] = {
    State.NEW: frozenset({State.PENDING, State.RUNNING, State.FINISHED, State.CLOSED}),
    State.PENDING: frozenset({State.RUNNING, State.FINISHED}),
    State.RUNNING: frozenset({State.FINISHED}),
    State.FINISHED: frozenset({State.CLOSED}),
    State.CLOSED: frozenset(),
}
"""The states that may follow each state."""

RECLAIM_STEP = 1000
"""Added to the revision of a reclaimed job: more changes than can have been told since its record was kept."""


class Job:
    """A job and its sandbox.

    Args:
        announce: called with every new record; it tells the routers.

    Attributes:
        request, limits, start_id: of the start, once there is one. After a restart of the agent the request is as
            `kept` has it.
        request_digest: of the whole request (`prouter.requests.digest`); empty if an earlier version kept none.
        started: the outcome of the start, a record or a `StartFailed`, once there is one.
        waits: set once its start has waited in a queue.
        accepted: set once the runner has its start, which then survives the agent.
        placed: set once the start does not wait any more: it runs (`spawned`), or has ended (`exit`).
        spawned: its first process, if its start has waited.
        exit: how the process ended, once it has.
        ending: why the agent ends the job, and a text for people, once it does.
        exited: set once no process of its tree is left.
        ended: set once the job is FINISHED.
        failure: why its start failed, if it did.
        removed: the outcome of its removal, once that is under way.
        routers: uids of the routers that have asked for its creation.
        scratch: its directory for temporary files, once it was started.
        starting, expiry: greenlets: of its start, and the one that ends it at its time limit.
        warm: whether it is kept ready in the pool and nobody's yet.
    """

    def __init__(
        self, record: JobRecord, sandbox: Sandbox, announce: Callable[[JobRecord], None], *, warm: bool = False
    ) -> None:
        self.warm = warm
        self.record = bounded(record)
        self.sandbox = sandbox
        self.request: StartRequest | None = None
        self.limits = Limits()
        self.start_id: str | None = None
        self.request_digest = ""
        self.started: AsyncResult[JobRecord] = AsyncResult()
        self.exposure: Exposure | None = None
        self.routers: set[str] = set()
        self.scratch: Scratch | None = None
        self.waits = Event()
        self.accepted = Event()
        self.placed = Event()
        self.spawned: Spawned | None = None
        self.exit: Exit | None = None
        self.ending: tuple[Reason, str | None] | None = None
        self.failure: str | None = None
        self.exited = Event()
        self.ended = Event()
        self.removed: AsyncResult[JobRecord] | None = None
        self.starting: Greenlet[..., None] | None = None
        self.expiry: Greenlet[..., None] | None = None
        self._announce = announce
        self._logs: dict[str, JobLog] = {}

    @property
    def uid(self) -> str:
        """The job's uid."""
        return self.record.uid

    @property
    def config(self) -> Path:
        """Directory in the sandbox for configuration files that a preset writes."""
        return self.sandbox.root / ".pagent.config"

    @property
    def alive(self) -> bool:
        """Whether it has processes, as far as the agent knows."""
        return self.record.state in (State.PENDING, State.RUNNING)

    @property
    def is_queued(self) -> bool:
        """Whether its start waits in a queue."""
        return self.record.queue is not None

    def queued(self, queued: Queued) -> None:
        """Note that its start waits, and why; without effect once it does not wait any more."""
        queue = {"reason": queued.reason, "expected_start": queued.expected_start}
        if self.record.state is State.NEW and not self.placed.is_set() and queue != self.record.queue:
            self.change(queue=queue)
            self.waits.set()

    def has_started(self, spawned: Spawned) -> None:
        """Note that the wait of its start is over, and wake it."""
        self.spawned = spawned
        self.placed.set()

    def change(self, state: State | None = None, **fields: Any) -> JobRecord:
        """Replace the record by one with these fields, and tell the routers.

        Raises:
            RuntimeError: `state` may not follow the present one; a programming error.
        """
        now = self.record.state
        if state is None:
            state = now
        elif state is not now and state not in NEXT[now]:
            raise RuntimeError(f"job {self.uid} cannot go from {now.value} to {state.value}")
        if state is not State.NEW:
            fields["queue"] = None
        # A record that is larger than routers take would be refused, and sent again for ever.
        self.record = bounded(replace(self.record, state=state, revision=self.record.revision + 1, **fields))
        if self.record.ended:
            self.ended.set()
        self._announce(self.record)
        return self.record

    def withdraw_key(self) -> None:
        """Let the job's idempotency key, if it has one, give another job."""
        if self.record.key is not None:
            self.change(key=None, digest=None)

    def give(self, announce: Callable[[JobRecord], None], **fields: Any) -> None:
        """Make a warm job somebody's, with these fields in its record. Its changes are announced from now on."""
        self.warm = False
        self._announce = announce
        self.record = bounded(replace(self.record, revision=self.record.revision + 1, **fields))

    def end(self, reason: Reason, text: str | None = None) -> None:
        """Note why the agent ends the job. The first reason counts."""
        if self.ending is None:
            self.ending = (reason, text)

    def process_ended(self, how: Exit) -> None:
        """Note how the job's processes ended, and wake a start that waits for its server."""
        self.exit = how
        self.exited.set()
        self.placed.set()
        if self.exposure is not None:
            self.exposure.died()

    def log(self, name: str) -> JobLog:
        """The job's ``stdout`` or ``stderr``: one object for all its readers and for the limit on its size."""
        found = self._logs.get(name)
        if found is None:
            found = self._logs[name] = JobLog(self.sandbox, name)
        return found

    def make_logs(self) -> None:
        """Make the job's logs, and keep them open while it lives, because the job may find and delete them.

        Raises:
            PRouterError: the disk is full, or no descriptor is left.
        """
        for name, fd in self.sandbox.logs.create().items():
            self.log(name).begin(fd)

    def hold(self) -> None:
        """Open sandbox and logs of a job that an earlier agent started, as far as they are still there."""
        with contextlib.suppress(PRouterError):
            self.sandbox.hold()
        for name in LOG_FILES.values():
            with contextlib.suppress(PRouterError):
                self.log(name).fileno()

    def release(self) -> None:
        """Give back what a running job holds: port, socket, short link, timer, and open logs that still have names."""
        if self.exposure is not None:
            self.exposure.release()
        if self.scratch is not None:
            self.scratch.release()
        self._detach()
        for log in self._logs.values():
            log.rest()
        self.sandbox.rest()

    def detach(self) -> None:
        """Give up this agent's reservation, timer and open logs; the job itself goes on."""
        self._detach()
        for log in self._logs.values():
            log.close()
        self.sandbox.let_go()

    def _detach(self) -> None:
        if self.exposure is not None:
            self.exposure.detach()
        if self.expiry is not None:
            self.expiry.kill(block=False)
            self.expiry = None

    def kept(self) -> dict[str, Any]:
        """All that a later agent needs to go on with this job, JSON-ready."""
        exposure = self.exposure
        port = exposure.port if exposure is not None else None
        socket = exposure.socket if exposure is not None else None
        return {
            "record": self.record.to_wire(),
            "request": _kept_request(self.request) if self.request is not None else None,
            "request_digest": self.request_digest,
            "routers": sorted(self.routers),
            "limits": self.limits.model_dump(exclude_none=True),
            "start_id": self.start_id,
            "port": port.number if port is not None else None,
            "socket": str(socket) if socket is not None else None,
            "tmp_link": str(self.scratch.link) if self.scratch is not None and self.scratch.link is not None else None,
            "reported": list(exposure.reported) if exposure is not None else [],
            "ending": [self.ending[0].value, self.ending[1]] if self.ending is not None else None,
            "failure": self.failure,
            "inodes": self.sandbox.kept(),
            "user": self.sandbox.user,
            "warm": self.warm,
        }

    @classmethod
    def reclaim(cls, kept: dict[str, Any], sandbox: Sandbox, announce: Callable[[JobRecord], None]) -> Job:
        """Rebuild a job, without its exposure, from what `kept` gave an earlier agent.

        Raises:
            KeyError, TypeError, ValueError, InvalidRequest: a version kept it that this one does not understand.
        """
        record = JobRecord.from_wire(kept["record"])
        job = cls(replace(record, revision=record.revision + RECLAIM_STEP), sandbox, announce)
        if kept["request"] is not None:
            # Earlier versions kept the whole request, and accepted requests that this one refuses.
            job.request = validated(StartRequest, {**kept["request"], **_beginnings(kept["request"]["args"])})
        job.request_digest = str(kept.get("request_digest") or "")
        job.routers.update(kept.get("routers", ()))  # Earlier versions kept none.
        job.limits = validated(Limits, kept["limits"])
        job.start_id = kept["start_id"]
        job.failure = kept["failure"]
        if kept.get("tmp_link") is not None:  # Earlier versions had no such link.
            job.scratch = Scratch(sandbox.root / os.fsdecode(SCRATCH_NAME), Path(kept["tmp_link"]))
        if kept.get("user") is not None:  # Earlier versions kept none.
            name, uid, gid, groups, *more = kept["user"]
            sandbox.belong_to(User(name, uid, gid, tuple(groups), *more))
        sandbox.adopt(kept.get("inodes", {}))
        if kept["ending"] is not None:
            job.ending = (Reason(kept["ending"][0]), kept["ending"][1])
        if job.failure is not None:
            job.started.set_exception(StartFailed(job.failure, job=job.uid, state=State.FINISHED.value))
        return job


def _kept_request(request: StartRequest) -> dict[str, Any]:
    """The part of a request that a later agent needs: neither long arguments nor the environment.

    The keeper tells the next agent of all jobs in one message of bounded size.
    """
    return {**request.model_dump(exclude={"args", "env"}), **_beginnings(request.args)}


def _beginnings(args: list[str]) -> dict[str, Any]:
    return {"args": bounded(JobRecord("", "", "", args=args)).args, "env": {}}
