"""Outcomes of calls, and refusals of those that the state of a job does not allow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gevent
from gevent.event import AsyncResult

from prouter.agent.jobs.state.job import Job
from prouter.errors import Conflict, KeyReused
from prouter.jobs import JobRecord
from prouter.requests import digest, validated
from prouter.template_requests import start_model

__all__ = ["not_running", "outcome_of", "outcome_within", "refuse_if_wanted", "refuse_other_start"]


def refuse_other_start(job: Job, request: Mapping[str, Any], request_id: str) -> None:
    """Refuse to start a job again, unless the same start is repeated. Jobs of earlier versions may have no digest.

    Raises:
        Conflict: another request has started it.
        KeyReused: the same `request_id` came with another request.
    """
    if job.start_id != request_id:
        state = job.record.state.value
        raise Conflict(
            f"job '{job.uid}' was started already: it is {state}; create another job", job=job.uid, state=state
        )
    if job.request_digest and digest(validated(start_model(request), request)) != job.request_digest:
        raise KeyReused("the job was started by a request with the same Idempotency-Key and another body", job=job.uid)


def refuse_if_wanted(job: Job, router: str) -> None:
    """Refuse to remove a job for a router that gave up its creation, if another router has created it as well.

    Raises:
        Conflict: one has.
    """
    if job.routers - {router}:
        raise Conflict(f"another router has created job '{job.uid}' as well", job=job.uid, code="job_wanted")


def not_running(job: Job) -> Conflict:
    """Return the error for a job that must run, and does not."""
    state = job.record.state.value
    if job.is_queued:
        text = f"job '{job.uid}' does not run yet: its start waits in a queue; stop or remove takes it out of it"
        return Conflict(text, job=job.uid, state=state)
    return Conflict(f"job '{job.uid}' does not run: it is {state}", job=job.uid, state=state)


def outcome_within(job: Job, wait: float | None, patience: float) -> JobRecord:
    """Wait for the outcome of a start; return the record as it is if that takes too long.

    Args:
        wait: seconds that the request allows, None if it does not say.
        patience: seconds after which, then, the start of a job that waits in a queue is answered.
    """
    job.started.wait(patience if wait is None else wait)
    if not job.started.ready():
        # A start that was answered must not be lost with the agent: the runner has to have it.
        event, most = (job.waits, None) if wait is None else (job.accepted, patience)
        gevent.wait([job.started, event], timeout=most, count=1)
    return outcome_of(job.started) if job.started.ready() else job.record


def outcome_of(result: AsyncResult[JobRecord]) -> JobRecord:
    """Wait for a record, and raise the error if that is the outcome."""
    record = result.get()
    assert record is not None
    return record
