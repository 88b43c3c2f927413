"""Why a job waits, has ended, or does not answer, from what the router knows of it and its agent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from prouter.cli.remote.durations import age
from prouter.cli.views.jobs import result
from prouter.client import Connection, Job, JobInfo, Router, RouterError

__all__ = ["Finding", "explain"]

_REASONS = {
    "exited": "it ended by itself",
    "signaled": "a signal ended it, from a request or from elsewhere on its machine",
    "stopped": "a request stopped it",
    "removed": "a request removed it while it ran",
    "timeout": "it ran longer than its time limit",
    "memory": "it used more memory than its limit, or than its machine has",
    "cpu": "it used more CPU time than its limit",
    "processes": "it started more processes than its limit",
    "sandbox": "its files needed more space than its limit",
    "start_failed": "it did not start",
    "agent_lost": "its agent was shut down, or lost control of it",
    "queue_timeout": "no agent had space for it in time",
    "port_taken": "another program had the port that was chosen for it",
    "walltime": "its time limit in the cluster was over",
    "node_failed": "its machine in the cluster failed",
    "preempted": "the cluster gave its place to another job",
    "cancelled": "somebody cancelled it in the cluster, or before it ran",
}
_TODO = {
    "timeout": "give it more time: 'prouter run --timeout'; the agent's jobs.limits.timeout is the ceiling",
    "memory": "raise its memory limit ('prouter run --resource memory=2G' in a cluster), or choose an agent with more "
    "memory: 'prouter run --where'",
    "walltime": "ask for more time: 'prouter run --slurm time=8:00:00'",
    "preempted": "run it again, with a partition or quality of service that is not preempted: 'prouter run --slurm'",
    "port_taken": "run it again: another port is chosen",
    "start_failed": "mend what the error says, and start a new job: a job starts once",
    "agent_lost": "jobs outlive a restart of their agent only with jobs.keep_for in the agent's configuration",
}
_HTTP_TODO = {
    "job_unreachable": "check that the server still listens: 'prouter logs --stderr JOB'",
    "job_timeout": "the server accepted the request and said nothing: look at what it does",
    "job_starting": "wait until its server is ready",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        ok: whether it is as it should be.
        text: what was found.
        todo: what to do about it, or None.
    """

    ok: bool
    text: str
    todo: str | None = None


def explain(router: Router, job: Job) -> list[Finding]:
    """Return what is to be said about a job, the most important first."""
    info = job.info()
    if info.phase == "queued":
        return [Finding(one["ok"], one["text"], one["todo"]) for one in job.explain().findings]
    findings = [_state(info)]
    if not info.ended:
        findings += _agent(router, job, info)
        if info.state == "RUNNING" and all(one.ok for one in findings):
            findings += _server(job, info)
    return findings


def _state(info: JobInfo) -> Finding:
    name = f"job {info.uid} ({info.name})"
    if info.ended:
        return _ended(name, info)
    if not info.confirmed:
        text = f"{name} is {info.state} as far as known: its agent has not come back since the router restarted"
        return Finding(False, text, "start the agent, or wait for it: 'prouter agents' shows those that are linked")
    if info.state == "NEW":
        text = f"{name} was created {age(info.created_at)} ago and never started: it waits for files and a start"
        return Finding(False, text, "whoever created it starts it; 'prouter rm' removes it")
    if info.state == "PENDING":
        text = f"{name} runs since {age(info.started_at or info.created_at)}; the agent waits for its server"
        todo = (
            "it has to listen on the port it was given, or report it (docs/jobs.md, Servers): 'prouter logs --stderr'"
        )
        return Finding(False, text, f"{todo} {info.uid[:12]}")
    return Finding(True, f"{name} is running since {age(info.started_at)}")


def _ended(name: str, info: JobInfo) -> Finding:
    why = _REASONS.get(info.reason or "", info.reason or "nobody knows why")
    text = f"{name} ended {age(info.finished_at)} ago, {result(info)}: {why}" + (
        f": {info.error}" if info.error else ""
    )
    todo = _TODO.get(info.reason or "")
    if todo is None and not info.ok and info.state != "CLOSED":
        todo = f"'prouter logs --stderr --tail 20 {info.uid[:12]}' shows what it wrote last"
    return Finding(info.ok, text, todo)


def _agent(router: Router, job: Job, info: JobInfo) -> Iterator[Finding]:
    uid = info.agent.get("uid")
    found = [one for one in router.connections() if one.agent.uid == uid]
    name = info.agent.get("name") or uid
    if not found:
        yield Finding(False, f"its agent {name} is not linked with the router", "start the agent: 'prouter agent'")
        return
    yield from _link(found[0], str(name))


def _link(agent: Connection, name: str) -> Iterator[Finding]:
    if not agent.up:
        text = f"its agent {name} is out of reach since the link broke; the router waits for it"
        yield Finding(False, text, "check that the agent runs and reaches the router's port for agents")
        return
    latency = f", {agent.latency_ms:.0f} ms away" if agent.latency_ms is not None else ""
    yield Finding(True, f"its agent {name} is linked{latency}" + (" and draining" if agent.draining else ""))
    if agent.load is not None and agent.load > 2:
        yield Finding(True, f"the agent's machine is busy: {agent.load:.1f} processes wait per core")


def _server(job: Job, info: JobInfo) -> Iterator[Finding]:
    if info.base_url is None:
        text = "it has no server: requests below its http/ get 502"
        yield Finding(True, text, "if it should have one, start it with --port or --preset")
        return
    try:
        response = job.http.get("", timeout=15.0)
    except (httpx.HTTPError, RouterError) as error:
        yield Finding(False, f"its server gave no answer: {error}", "'prouter doctor' looks at the way to the router")
        return
    finally:
        job.close()
    code = response.headers.get("x-prouter-error")
    if code is None:
        yield Finding(response.status_code < 500, f"its server answers {response.status_code} at {info.url}")
        return
    yield Finding(False, f"the router answers for its server: {_detail(response)}", _HTTP_TODO.get(code))


def _detail(response: httpx.Response) -> str:
    try:
        return f"{response.status_code}, {response.json()['detail']}"
    except (ValueError, KeyError, TypeError):
        return str(response.status_code)
