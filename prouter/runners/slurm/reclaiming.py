"""The jobs that outlived an earlier agent, from their files. What Slurm knows of them comes with the first look."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gevent

from prouter.runners.interface import Exit, Kept, Queued, Spawned
from prouter.runners.slurm.ends import Ends
from prouter.runners.slurm.exits import made_by_node, needs_explanation, never_ran
from prouter.runners.slurm.job import Job, JobState
from prouter.runners.slurm.node import job_files
from prouter.runners.slurm.table import Table

__all__ = ["reclaim"]

_log = logging.getLogger("prouter.runner")


def reclaim(table: Table, ends: Ends, directory: Path) -> list[Kept]:
    """Take over all jobs of a directory. One whose files make no sense costs only itself.

    Returns:
        What `Runner.open` returns. What has happened to them since, and is not told thereby, is reported later.
    """
    kept = []
    for place in sorted(directory.iterdir()):
        content = table.files(_read, str(place), job_files.RECORD)
        if content is None:
            _log.warning("event=job_without_record directory=%r", str(place))
            table.files(_clear, str(place))
            continue
        try:
            record, sandbox = content["record"], content["sandbox"]
        except (KeyError, TypeError) as error:
            _log.error("event=job_not_reclaimed directory=%r error=%r", str(place), f"its record: {error!r}")
            continue
        try:
            kept.append(_reclaimed(table, ends, table.add(place.name, record, sandbox)))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            _log.error("event=job_not_reclaimed directory=%r error=%r", str(place), repr(error))
            kept.append(_given_up(table.add(place.name, record, sandbox)))
    return kept


def _given_up(job: Job) -> Kept:
    """Take a job for lost. If it runs, its node hears that when it connects."""
    job.change(JobState.SUBMITTING)
    job.exit = never_ran(job.uid, "agent_lost", "its files make no sense to this agent; another version wrote them")
    job.change(JobState.ENDED)
    job.told = True
    return _kept(job)


def _reclaimed(table: Table, ends: Ends, job: Job) -> Kept:
    start = table.read(job, job_files.JOB)
    if start is None:
        return _kept(job)
    job.secret, job.name = start["secret"], start["name"]
    job.change(JobState.SUBMITTING)
    submitted = table.read(job, job_files.SUBMITTED)
    if submitted is not None:
        job.number, job.submitted_at = submitted["number"], submitted["at"]
        job.change(JobState.QUEUED)
    spawned = table.read(job, job_files.SPAWNED)
    told = table.read(job, job_files.EXIT)
    end = table.read(job, job_files.END)
    if spawned is not None:
        job.spawned = Spawned(job.uid, **{**spawned, "started_at": job.moment(spawned["started_at"])})
        job.change(JobState.RUNNING)
        if end is None and told is not None and not needs_explanation(told, killed=False, signalled=False):
            end = asdict(made_by_node(job.uid, {**told, "at": job.moment(told["at"])}, None, ""))
    if end is not None:
        job.exit = Exit(**end)
        job.change(JobState.ENDED)
    result = _kept(job)
    job.told = True
    if told is not None and job.exit is None:
        gevent.spawn(ends.told_by_node, job, told)
    elif job.waiting:
        claim = table.read(job, job_files.CLAIM)
        if claim is not None and not claim.get(job_files.NODE):
            gevent.spawn(ends.kill, job)  # The earlier agent was about to end it.
    return result


def _kept(job: Job) -> Kept:
    queued = Queued(job.uid) if job.waiting else None
    return Kept(job.uid, job.record, job.sandbox, job.spawned, job.exit, queued)


def _read(directory: str, name: str) -> Any:
    try:
        return job_files.read(directory, name)
    except (OSError, ValueError) as error:
        _log.warning("event=job_file_not_read directory=%r file=%s error=%r", directory, name, str(error))
        return None


def _clear(directory: str) -> None:
    job_files.clear(directory, everything=True)
