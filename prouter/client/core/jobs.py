"""Flows of jobs: create, start, find, list, wait, stop, signal, remove, share, bridge."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from prouter.client.core.errors import Conflict, ConnectionFailed, NoAgentFree, NotFound, RouterError, TimedOut
from prouter.client.core.flow import Flow, Request, give, now
from prouter.client.core.models import Bridge, Explanation, JobInfo, Share
from prouter.client.core.paths import job_path, query, segment
from prouter.client.core.retries import LEAST, Attempts, Context, call, call_json

__all__ = [
    "AgentChoice",
    "Creation",
    "bridge",
    "bridges",
    "choice",
    "discard",
    "explain",
    "find",
    "info",
    "list_jobs",
    "make_once",
    "open_url",
    "post",
    "remove",
    "send_signal",
    "share",
    "shares",
    "start",
    "start_body",
    "stop",
    "unbridge",
    "unshare",
    "wait",
    "wait_for_agent",
    "wait_to_start",
]

AgentChoice = str | Sequence[str] | Mapping[str, Any] | None
"""Which agent: a uid; several of them; the API's object with ``type``; None for any."""

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
_JSON = {"Content-Type": "application/json"}


def post(path: str, body: Mapping[str, Any] | None = None, *, key: str | None = None, **how: Any) -> Request:
    """Return a POST of JSON, with an idempotency key."""
    content = json.dumps(body).encode() if body is not None else b""
    headers = {**(_JSON if body is not None else {}), **({"Idempotency-Key": key} if key is not None else {})}
    return Request("POST", path, headers, content, **how)


def choice(
    agent: AgentChoice = None,
    where: Mapping[str, Any] | None = None,
    require: Mapping[str, Any] | None = None,
    resources: Mapping[str, float] | None = None,
    strategy: str | None = None,
) -> dict[str, Any]:
    """Return the API's ``agent`` of a choice.

    Raises:
        ValueError: an agent is given, and what is for any agent.
    """
    wanted: dict[str, Any] = {"properties": where, "require": require, "resources": resources, "strategy": strategy}
    given = {name: value for name, value in wanted.items() if value is not None}
    if agent is None:
        return {"type": "any", **{name: dict(value) if name != "strategy" else value for name, value in given.items()}}
    if given:
        names = ", ".join({"properties": "where"}.get(name, name) for name in given)
        raise ValueError(f"give either agent or {names}: an agent, or what any agent must have")
    if isinstance(agent, str):
        return {"type": "uid", "uid": agent}
    return dict(agent) if isinstance(agent, Mapping) else {"type": "select", "uids": list(agent)}


class Creation:
    """The creation of one job, empty or of a template; exactly one, however often the connection breaks.

    Args:
        name: for people.
        agent: see `choice`; any by default.
        template: name of a template that it must have; None for an empty job.
        queue: seconds for which the job may wait until an agent has space for it; None for not at all.
    """

    def __init__(
        self,
        context: Context,
        name: str | None = None,
        agent: Mapping[str, Any] | None = None,
        template: str | None = None,
        queue: float | None = None,
    ) -> None:
        self._context = context
        self._key = context.new_key()
        self._body: dict[str, Any] = {"name": name or "", "agent": agent or choice()}
        if template is not None:
            self._body["template"] = template
        if queue is not None:
            self._body["queue"] = {"timeout": queue}
        self._attempts = Attempts(context, context.retry_for, least=LEAST)

    def carry_out(self) -> Flow[JobInfo]:
        """Create the job.

        Raises:
            NoAgent: no agent can take it.
        """
        return (yield from self._ask(None, self._attempts))

    def undo(self) -> Flow[None]:
        """Remove the job, if that is possible soon, after its creation was interrupted: nobody else knows it.

        Only the key finds a job whose info did not arrive, so it is asked for once more.
        """
        if not (self._attempts.running or self._attempts.ambiguous):
            return
        with suppress(RouterError):
            made = yield from self._ask(CLEANUP, Attempts(self._context, CLEANUP if self._context.reached else 0.0))
            yield from discard(self._context, made.path)

    def _ask(self, silence: float | None, attempts: Attempts) -> Flow[JobInfo]:
        request = post("/jobs/create", self._body, key=self._key, silence=silence)
        return JobInfo.of((yield from call_json(self._context, request, placing=True, attempts=attempts)))


def start_body(
    args: Sequence[str | os.PathLike[str]],
    *,
    template: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    expose: str | Mapping[str, Any] | None = None,
    preset: str | None = None,
    limits: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the body of a start. Without `expose` and `preset` the job has no server.

    Args:
        template: name of a template of the agent, instead of everything but `limits`.
        expose: the API's object, or only its ``port``: ``assign``, ``detect``, ``unix`` or ``notify``.
        options: further keys of the body.

    Raises:
        TypeError: `args` is one text instead of a list.
        ValueError: there is neither `args` nor a template, or both.
    """
    if template is not None:
        if args or env or cwd or expose or preset or options:
            raise ValueError("a template says how the job is started: give it alone, or with limits={'timeout': …}")
        return {"template": template, **({"limits": dict(limits)} if limits is not None else {})}
    if not args:
        raise ValueError("give args, such as ['python3', 'main.py'], or the name of a template")
    if isinstance(args, str):
        raise TypeError("args is a list, such as ['python3', 'main.py']; for a shell: ['sh', '-c', '…']")
    exposed = {"port": expose} if isinstance(expose, str) else dict(expose or {})
    if preset is not None:
        exposed["preset"] = preset
    body: dict[str, Any] = {"args": [os.fspath(arg) for arg in args], "env": dict(env or {})}
    if exposed:
        body["expose"] = exposed
    else:
        body["port_expected_count"] = 0
    if cwd is not None:
        body["cwd"] = cwd
    if limits is not None:
        body["limits"] = dict(limits)
    return {**body, **(options or {})}


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


def open_url(context: Context, path: str, page: str = "") -> Flow[str]:
    """Return a URL that lets a browser in to the job's server, once followed within a minute.

    Args:
        page: path and query below the job's address, at which to begin.

    Raises:
        RouterError: the job has no server, or the router told no URL.
    """
    answer = yield from call_json(context, post(f"{path}/pass"))
    url = answer.get("url")
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise RouterError("the router told no URL for a browser: check its version, and the URL you use for it")
    page = page.lstrip("/")
    if not page:
        return url
    return f"{url}&next=/{quote(page)}" if "?" in url else url + page


def bridge(context: Context, path: str, url: str, at: str) -> Flow[str]:
    """Connect the job's WebSocket at a path with another server's; return the bridge's uid."""
    request = post(f"{path}/wsconnect/{at.lstrip('/')}", {"url": url}, silence=max(context.timeout, 60.0))
    response = yield from call(context, request, safe=False)
    return response.headers.get("x-prouter-bridge", "")


def bridges(context: Context, path: str) -> Flow[list[Bridge]]:
    """Return a job's bridges."""
    answer = yield from call_json(context, Request("GET", f"{path}/wsconnect"))
    return [Bridge.of(one) for one in answer.get("bridges", [])]


def unbridge(context: Context, path: str, uid: str) -> Flow[None]:
    """End a bridge."""
    yield from call(context, Request("DELETE", f"{path}/wsconnect/{segment(uid)}"), gone=True)


def share(context: Context, path: str, *, expires: float | None, name: str | None, methods: str) -> Flow[Share]:
    """Make a share link; exactly one."""
    body: dict[str, Any] = {"methods": methods}
    if expires is not None:
        body["expires"] = expires
    if name is not None:
        body["name"] = name
    return Share.of((yield from make_once(context, f"{path}/share", body)))


def shares(context: Context, path: str) -> Flow[list[Share]]:
    """Return a job's share links, without their URLs."""
    answer = yield from call_json(context, Request("GET", f"{path}/share"))
    return [Share.of(one) for one in answer.get("shares", [])]


def unshare(context: Context, path: str, identifier: str) -> Flow[None]:
    """End a share link and its open connections."""
    yield from call(context, Request("DELETE", f"{path}/share/{segment(identifier)}"), gone=True)


def make_once(context: Context, path: str, body: Mapping[str, Any]) -> Flow[dict[str, Any]]:
    """Make what the router shows only once, a token or a share link; return its answer.

    If that answer was lost, what the lost attempt made is deleted, and another one is made.
    """
    while True:
        try:
            return (yield from call_json(context, post(path, body, key=context.new_key())))
        except Conflict as error:
            if error.made is None:
                raise
            yield from call(context, Request("DELETE", f"{path}/{segment(error.made)}"), gone=True)
