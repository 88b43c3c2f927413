"""The agent's jobs by uid, and the slots that they take."""

from __future__ import annotations

from collections.abc import Iterator, KeysView
from weakref import WeakValueDictionary

from prouter.agent.jobs.state.job import Job
from prouter.errors import NotFound
from prouter.resources import add

__all__ = ["JobTable", "not_found"]


class JobTable:
    """All jobs that were not removed. A job takes a slot until it has ended, unless it is a warm one of the pool."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._slots: set[str] = set()
        self._by_key: WeakValueDictionary[str, Job] = WeakValueDictionary()
        self._warm: set[str] = set()
        """Those of them that are warm."""
        self._instead: dict[str, str] = {}
        """By the uid that a router chose, the uid of the job that it got instead."""

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._jobs.values()))

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, uid: str) -> bool:
        return uid in self._jobs

    @property
    def uids(self) -> KeysView[str]:
        """The uids of all jobs."""
        return self._jobs.keys()

    @property
    def slots(self) -> int:
        """How many jobs have not ended, without the warm ones."""
        return len(self._slots) - len(self._warm)

    @property
    def told(self) -> list[Job]:
        """The jobs that routers know of: all but the warm ones."""
        return [job for job in self._jobs.values() if not job.warm]

    @property
    def alive(self) -> list[Job]:
        """The jobs that have processes, as far as the agent knows."""
        return [self._jobs[uid] for uid in self._slots if self._jobs[uid].alive]

    @property
    def living(self) -> list[Job]:
        """The jobs that have not ended."""
        return [self._jobs[uid] for uid in self._slots]

    @property
    def ended_jobs(self) -> list[Job]:
        """The jobs that have ended and were not removed."""
        return [job for uid, job in self._jobs.items() if uid not in self._slots]

    @property
    def taken(self) -> dict[str, float]:
        """What the jobs that have not ended take of the agent's resources, without the warm ones."""
        taken: dict[str, float] = {}
        for uid in self._slots - self._warm:
            add(taken, self._jobs[uid].record.resources)
        return taken

    def get(self, uid: str) -> Job | None:
        """The job with this uid, also while it is being removed; None if there is none."""
        return self._jobs.get(uid)

    def find(self, uid: str) -> Job:
        """The job with this uid.

        Raises:
            NotFound: there is none that routers know of, or it is being removed.
        """
        job = self._jobs.get(uid)
        if job is None or job.removed is not None or job.warm:
            raise not_found(uid)
        return job

    def made_by(self, key: str) -> Job | None:
        """The job that an idempotency key with this hash has given, unless it was removed."""
        job = self._by_key.get(key)
        found = job is not None and self._jobs.get(job.uid) is job and job.removed is None and job.record.key == key
        return job if found else None

    def created(self, uid: str) -> Job | None:
        """The job that a creation has given which chose this uid; None if there is none."""
        job = self._jobs.get(self._instead.get(uid, uid))
        return None if job is None or job.warm else job

    def add(self, job: Job) -> None:
        """Add a job. It takes a slot unless it has ended."""
        self._jobs[job.uid] = job
        if not job.record.ended:
            self._slots.add(job.uid)
            if job.warm:
                self._warm.add(job.uid)
        self._note_origin(job)

    def given(self, job: Job) -> None:
        """Note that a warm job is somebody's now."""
        self._warm.discard(job.uid)
        self._note_origin(job)

    def _note_origin(self, job: Job) -> None:
        if job.record.key is not None:
            self._by_key[job.record.key] = job
        if job.record.instead_of is not None:
            self._instead[job.record.instead_of] = job.uid

    def ended(self, uid: str) -> None:
        """Free the slot of a job that has ended."""
        self._slots.discard(uid)
        self._warm.discard(uid)

    def drop(self, job: Job) -> None:
        """Remove a job. Idempotent."""
        self._jobs.pop(job.uid, None)
        self.ended(job.uid)
        if job.record.instead_of is not None:
            self._instead.pop(job.record.instead_of, None)


def not_found(uid: str) -> NotFound:
    """The error for a uid that names no job."""
    return NotFound(f"job '{uid}' is not found", job=uid)
