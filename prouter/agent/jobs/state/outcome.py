"""The end of a job in its record: reason, exit status and, if there is more to tell, a text."""

from __future__ import annotations

import time
from typing import Any

from prouter.agent.expose.exposure import NO_REPORT
from prouter.agent.jobs.state.job import Job
from prouter.errors import PRouterError
from prouter.jobs import Reason

__all__ = ["failure_text", "outcome"]

_TAIL = 2048
"""Bytes of a job's output that the error of a failed start shows."""

_NO_MEMORY = "the kernel killed it because the machine, or the service that the agent is, had no memory left"
_LIMIT_TEXTS = {
    Reason.MEMORY: "its processes used more than their limit of {memory} bytes of memory",
    Reason.CPU: "its processes used more than their limit of {cpu_seconds:g} seconds of CPU time",
    Reason.PROCESSES: "it had more than its limit of {processes} processes",
    Reason.AGENT_LOST: "the process that runs the agent's jobs was lost",
}


def outcome(job: Job) -> dict[str, Any]:
    """The record's fields for a job that has ended or could not be started.

    The reason is the agent's if the agent ended the job, else the runner's, else the exit status gives it.
    """
    how = job.exit
    text = job.failure
    if job.ending is not None:
        reason, text = job.ending[0], job.ending[1] or text
    elif how is not None and how.reason is not None:
        reason = Reason(how.reason)
        text = text or how.text or _limit_text(job, reason)
    elif text is not None:
        reason = Reason.START_FAILED
    else:
        reason = Reason.SIGNALED if how is not None and how.signal is not None else Reason.EXITED
    fields: dict[str, Any] = {
        "pid": None,
        "endpoint": None,
        "queue": None,
        "reason": reason,
        "error": text,
        "finished_at": time.time(),
    }
    if how is not None:
        fields["node"] = how.node or job.record.node
        fields |= {"exit_code": how.exit_code, "signal": how.signal, "finished_at": how.at}
        if how.exit_code is not None or how.signal is not None:
            fields |= {"cpu_seconds": how.cpu_seconds, "rss_bytes": how.max_rss}
    return fields


def _limit_text(job: Job, reason: Reason) -> str | None:
    template = _LIMIT_TEXTS.get(reason)
    if template is None:
        return None
    if reason is Reason.MEMORY and job.limits.memory is None:
        return _NO_MEMORY
    return template.format(**{name: value or 0 for name, value in job.limits.model_dump().items()})


def failure_text(job: Job, why: str, *, killed: bool = False) -> str:
    """The text of a failed start: `why`, how the process ended, and the end of its stderr, or else of its stdout.

    Args:
        killed: whether the agent killed the process because of the failure.
    """
    text = why
    if job.exit is not None and job.exit.text and job.ending is None:
        text += f": {job.exit.text}"
    if job.exit is not None and job.ending is None and not killed:
        if job.exit.signal is not None:
            text += f" (ended by {job.exit.signal})"
        elif job.exit.exit_code is not None:
            text += f" (exit code {job.exit.exit_code})"
        if job.exit.exit_code == 0 and job.exposure is not None and job.exposure.unreported:
            text += f"; {NO_REPORT}"
    for name in ("stderr", "stdout"):
        tail = _tail(job, name)
        if tail:
            if "address already in use" in tail.lower():
                text += "; another program had taken the port, a new job may succeed"
            return f"{text}; the end of its {name}:\n{tail}"
    return text


def _tail(job: Job, name: str) -> str:
    if job.request is None or job.request.forward_stdout:
        return ""
    try:
        log = job.log(name)
        data = log.read(max(log.first(), log.end() - _TAIL), _TAIL).data
    except PRouterError:
        return ""  # The job wrote none, or has removed it.
    text = data.decode("utf-8", "replace")
    if len(data) == _TAIL:
        text = text[text.find("\n") + 1 :]
    return text.strip()
