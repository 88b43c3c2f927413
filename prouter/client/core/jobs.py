"""Flows of jobs: start, find, list, wait, stop, signal, remove."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from prouter.client.core.errors import ConnectionFailed, NoAgentFree, NotFound, RouterError, TimedOut
from prouter.client.core.flow import Flow, Request, give, now
from prouter.client.core.models import Explanation, JobInfo
from prouter.client.core.paths import job_path, query
from prouter.client.core.requests import post
from prouter.client.core.retries import Context, call, call_json

__all__ = [
    "CLEANUP",
    "discard",
    "explain",
    "find",
    "info",
    "list_jobs",
    "remove",
    "send_signal",
    "start",
    "stop",
    "wait",
    "wait_for_agent",
    "wait_to_start",
]

CLEANUP = 5.0
"""Seconds for which a job's removal is tried, and its answer awaited, while another error waits to be raised."""
_LATE = 5.0
"""Seconds by which the answer to a wait with a deadline may come later than the router was asked for it."""
_PAGE = 250
"""Jobs in a page of a list."""
_WAIT = 20.0
"""Seconds that the router is asked to wait at once: a connection that broke silently is noticed soon after."""
_START = 30.0
"""Seconds that a start may take by default."""
_PRESET_START = 180.0
"""Seconds that a start with a preset may take, at most, unless the request says otherwise."""


def start(context: Context, path: str, body: Mapping[str, Any], wait: float | None = None) -> Flow[JobInfo]:
    """Start a job once; return its info once its server, if it has one, is ready.

    A start may take minutes. If the router was silent for `Context.timeout`, it is asked again, with the same key: it
    answers both when the job is ready, and a connection that broke silently is noticed meanwhile.

    Args:
        wait: seconds after which the info of a job that is still queued or starting is returned.

    Raises:
        StartFailed: it did not start; `detail` has the end of its stderr.
    """
    expose = body.get("expose") or {}
    longest = expose.get("timeout") or (_PRESET_START if "preset" in expose or "template" in body else _START)
    silence = None if wait is None else wait + context.timeout  # A repeated request would wait from the beginning.
    request = post(f"{path}/start{query(wait=wait)}", body, key=context.new_key(), silence=silence)
    longest = max(longest, wait or 0.0)
    return JobInfo.of((yield from call_json(context, request, patience=longest + context.retry_for)))


def info(context: Context, path: str, *, usage: bool = False) -> Flow[JobInfo]:
    """Return a job's info; with `usage` its CPU time and memory as they are now."""
    return JobInfo.of((yield from call_json(context, Request("GET", f"{path}/info{query(usage=usage)}"))))


def find(context: Context, name: str) -> Flow[JobInfo]:
    """Return the info of a job by its path, its URL, its uid, or the beginning of its uid.

    Raises:
        NotFound: there is none.
        ValueError: several uids begin so.
    """
    path = job_path(name)
    if path is not None:
        return (yield from info(context, path))
    if not name or "/" in name:
        raise ValueError(f"{name!r} is neither a job's path (/jobs/…/…) nor its uid")
    found: list[JobInfo] = []
    cursor: str | None = None
    while True:
        jobs, cursor = yield from _page(context, {}, cursor)
        found += [job for job in jobs if job.uid.startswith(name)]
        exact = [job for job in found if job.uid == name]
        if exact or cursor is None:
            break
    matching = exact or found
    if not matching:
        raise NotFound(f"no job's uid begins with {name!r}", status=404, code="not_found", job=name)
    if len(matching) > 1:
        shown = ", ".join(job.uid for job in matching[:5])
        raise ValueError(f"the uids of {len(matching)} jobs begin with {name!r}: {shown}; give more of it")
    return matching[0]


def _page(context: Context, filters: Mapping[str, Any], cursor: str | None) -> Flow[tuple[list[JobInfo], str | None]]:
    answer = yield from call_json(context, Request("GET", "/jobs" + query(**filters, limit=_PAGE, cursor=cursor)))
    return [JobInfo.of(job) for job in answer.get("jobs", [])], answer.get("next")


def list_jobs(
    context: Context, *, state: str | Iterable[str] | None, agent: str | None, name: str | None, owner: str | None
) -> Flow[None]:
    """Give the infos of all jobs that fit, newest first, from all pages."""
    states = [state] if isinstance(state, str) else list(state) if state is not None else None
    cursor: str | None = None
    while True:
        jobs, cursor = yield from _page(
            context, {"state": states, "agent": agent, "name": name, "owner": owner}, cursor
        )
        for job in jobs:
            yield from give(job)
        if cursor is None:
            return


def wait_for_agent(context: Context, job: JobInfo, timeout: float | None = None) -> Flow[JobInfo]:
    """Return the info of a job that was queued, once an agent has it; at once if it is in no queue.

    Args:
        timeout: seconds; None for as long as it takes.

    Raises:
        NoAgent: its time in the queue is up.
        TimedOut: it still waits.
        NotFound: it was removed.
    """
    if job.phase != "queued" or job.agent.get("uid"):
        return job
    found = yield from wait(context, job.path, timeout)
    if found.reason == "queue_timeout":
        raise NoAgentFree(found.error or "no agent had space in time", code="queue_timeout", job=job.uid)
    return found


def wait_to_start(
    context: Context, job: JobInfo, wait: float | None, uploads: bool
) -> Flow[tuple[JobInfo, float | None]]:
    """Wait until a queued job may be started; return its info, and how many seconds of `wait` are left for the start.

    Without files to upload the start may be sent while the job is queued: the router keeps it.

    Args:
        wait: seconds for which the caller waits for the start; None for as long as it takes.
        uploads: whether files are to be uploaded before it, which takes an agent.

    Raises:
        NoAgent: its time in the queue is up.
        NotFound: it was removed.
    """
    if wait is None or uploads:
        return (yield from wait_for_agent(context, job)), wait
    until = (yield from now()) + wait
    try:
        job = yield from wait_for_agent(context, job, wait)
    except TimedOut:
        return job, 0.0
    return job, max(0.0, until - (yield from now()))


def explain(context: Context, path: str) -> Flow[Explanation]:
    """Return why a job waits, has ended or cannot be reached."""
    return Explanation.of((yield from call_json(context, Request("GET", f"{path}/explain"))))


def wait(context: Context, path: str, timeout: float | None = None) -> Flow[JobInfo]:
    """Return a job's info once it has ended; at once if it was not started.

    Args:
        timeout: seconds; None for as long as it takes, also over restarts of the router.

    Raises:
        TimedOut: the job still runs.
        NotFound: the job was removed.
    """
    deadline = None if timeout is None else (yield from now()) + timeout
    reached = False
    while True:
        left = None if deadline is None else max(0.0, deadline - (yield from now()))
        patience = left if left is not None else float("inf") if reached else context.retry_for
        asked = _WAIT if left is None else min(_WAIT, left)
        late = context.timeout if left is None or asked < left else min(context.timeout, _LATE)
        request = post(f"{path}/wait{query(timeout=asked)}", silence=asked + late)
        try:
            response = yield from call(context, request, patience=patience)
        except RouterError as error:
            if left is None or not _may_pass(error):
                raise
            raise TimedOut(_still_running(path, timeout) + f"; {error.detail}", code="timed_out") from error
        reached = True
        job = JobInfo.of(json.loads(response.content))
        if response.status == 200:
            return job
        if deadline is not None and (yield from now()) >= deadline:
            raise TimedOut(_still_running(path, timeout), code="timed_out", job=job.uid, state=job.state)


def _may_pass(error: RouterError) -> bool:
    return isinstance(error, ConnectionFailed) or error.status in (429, 502, 503, 504)


def _still_running(path: str, timeout: float | None) -> str:
    return f"job {path.rpartition('/')[2]!r} has not ended within {timeout:g} s"


def stop(context: Context, path: str, grace: float | None = None) -> Flow[JobInfo]:
    """Send SIGTERM to all processes of a job, SIGKILL `grace` seconds later; return its info once it has ended."""
    body = {} if grace is None else {"grace": grace}
    request = post(f"{path}/stop", body, silence=(10.0 if grace is None else grace) + context.timeout)
    return JobInfo.of((yield from call_json(context, request)))


def send_signal(context: Context, path: str, name: str) -> Flow[JobInfo]:
    """Send a signal to a job's first process, at most once.

    Raises:
        ConnectionFailed: the connection was lost; `sent` tells whether the signal may have been sent.
    """
    return JobInfo.of((yield from call_json(context, post(f"{path}/signal", {"signal": name}), safe=False)))


def remove(context: Context, path: str) -> Flow[JobInfo | None]:
    """End a job and delete its sandbox; return its info as it was, None if only a lost attempt got that."""
    response = yield from call(context, post(f"{path}/remove"), gone=True)
    return JobInfo.of(json.loads(response.content)) if response.status == 200 else None


def discard(context: Context, path: str) -> Flow[bool]:
    """Remove a job if that is possible soon, for callers with another error to raise; return whether it is gone."""
    try:
        yield from call(context, post(f"{path}/remove", silence=CLEANUP), gone=True, patience=CLEANUP)
    except RouterError as error:
        return isinstance(error, NotFound)
    return True
