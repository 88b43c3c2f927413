"""Jobs: list, create, run; and one job: start, wait, info, signal, stop, remove."""

from __future__ import annotations

import hashlib
import json
import logging
import time
import uuid
from typing import TYPE_CHECKING, Any

import falcon

from prouter.errors import InvalidRequest, NotFound, PRouterError
from prouter.fabric.bounds import MAX_PAGE
from prouter.jobs import Phase, State
from prouter.requests import CreateRequest, RunRequest, SignalRequest, StartRequest, StopRequest, digest
from prouter.template_requests import TemplateRun, TemplateStart, run_model, start_model
from prouter.web.admin.requests import query
from prouter.web.admin.requests.body import discard_body, read_model, read_one_of
from prouter.web.admin.requests.context import ApiRequest, principal_of, send_json
from prouter.web.admin.requests.disclosure import disclosed, disclosed_list
from prouter.web.admin.requests.job_urls import JobUrls

if TYPE_CHECKING:
    from prouter.web.router_client import RouterClient

__all__ = ["Job", "Jobs"]

_MOST_JOBS = 1000
"""Jobs in one page of a list, at most."""
_ENOUGH = 128 * 1024
"""Free bytes at which a page of a list counts as full: one more job may need them."""
_PAGE = 100
_MAX_KEY = 255
_CALL_TIMEOUT = 60.0
"""Seconds the broker may take to reply; it holds calls to an agent that is away for less than that."""
_GOING_ON = frozenset({State.PENDING.value, State.RUNNING.value})
_STARTING = frozenset({Phase.QUEUED.value, Phase.STARTING.value})

JobInfo = dict[str, Any]


def _given(req: ApiRequest) -> bool:
    """Return whether the client sent an Idempotency-Key."""
    return req.get_header("Idempotency-Key") is not None


def _key(req: ApiRequest, scope: str) -> str:
    """Return the key by which the broker recognizes a repeated request: the client's, or a new one."""
    given = req.get_header("Idempotency-Key")
    if given is None:
        return uuid.uuid4().hex
    if not given or len(given) > _MAX_KEY:
        raise InvalidRequest(f"Invalid request: Idempotency-Key must have 1 to {_MAX_KEY} characters")
    name = principal_of(req).name  # what one user sends must not give the job of another
    digested = hashlib.sha256(given.encode("utf-8", "surrogateescape")).hexdigest()  # the key itself is not stored
    return f"{scope}@{name} {digested}" if name else f"{scope} {digested}"


def _owner(req: ApiRequest) -> str | None:
    """Who owns the jobs that this request creates."""
    return principal_of(req).name or None


_log = logging.getLogger("prouter.web")


class _Calls:
    """Calls to the broker about jobs."""

    def __init__(self, router: RouterClient) -> None:
        self._router = router

    def _call(self, op: str, args: dict[str, Any], timeout: float | None = _CALL_TIMEOUT) -> dict[str, Any]:
        reply: dict[str, Any] = self._router.call(op, args, timeout=timeout)
        return reply

    def _create(
        self,
        request: CreateRequest,
        key: str,
        body_digest: str,
        owner: str | None,
        start: dict[str, Any] | None = None,
    ) -> JobInfo:
        """Create a job, or return that of the first request with this key.

        Args:
            body_digest: digest of the request body if the client sent a key, else empty.
            owner: name of the access token, None without one.
            start: how the job is to be started in case that it is queued.

        Raises:
            KeyReused: the first request had another body.
        """
        about = {"digest": body_digest} if body_digest else {}
        if owner is not None:
            about["owner"] = owner
        body = {**request.model_dump(), "key": key, **about, **({"start": start} if start is not None else {})}
        created: JobInfo = self._call("jobs.create", body)["job"]
        return created

    def _start(
        self, connection: str, job: str, request: StartRequest | TemplateStart, key: str, wait: float | None = None
    ) -> JobInfo:
        """Start a job; return it once its server is ready, or earlier if it is queued or `wait` seconds are over."""
        body = request.model_dump(exclude_none=True)
        args: dict[str, Any] = {"connection": connection, "job": job, "request": body, "key": key}
        if wait is not None:
            args["wait"] = wait
        started: JobInfo = self._call("jobs.start", args, timeout=None)["job"]
        return started

    def _urls(self, req: ApiRequest) -> JobUrls:
        return JobUrls(req.env, self._router.config.control.job_domain)

    def _send(self, req: ApiRequest, resp: falcon.Response, info: JobInfo, status: int = 200) -> None:
        """Send a job's info."""
        req.env["prouter.job"] = info["uid"]  # for the audit log: the path of a request that creates has none
        send_json(resp, self._urls(req).add_to(disclosed(info, principal_of(req))), status)

    def _wait(self, req: ApiRequest, resp: falcon.Response, connection: str, job: str, timeout: float | None) -> None:
        """Send the job's info: with 200 once it does not run, with 202 after `timeout` seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        args = {"connection": connection, "job": job, "until": until}
        info = self._call("jobs.wait", args, timeout=None)["job"]
        self._send(req, resp, info, 202 if info["state"] in _GOING_ON or info["phase"] in _STARTING else 200)

    def _send_started(self, req: ApiRequest, resp: falcon.Response, info: JobInfo) -> None:
        """Send the info of a job that was started: with 202 if it is not ready yet."""
        self._send(req, resp, info, 202 if info["phase"] in _STARTING else 200)


class Jobs(_Calls):
    """The resources ``/jobs``, ``/jobs/create`` and ``/jobs/run``."""

    def on_get(self, req: ApiRequest, resp: falcon.Response) -> None:
        """Send a page of jobs, newest first. The broker gives it in parts, so that a long one delays no other call."""
        limit = query.integer(req, "limit", low=1, high=_MOST_JOBS) or _PAGE
        args = {
            "states": query.choices(req, "state", tuple(state.value for state in State)),
            "agent": query.text(req, "agent"),
            "name": query.text(req, "name"),
            "owner": query.text(req, "owner"),
        }
        cursor = query.text(req, "cursor")
        parts: list[bytes] = []
        free = MAX_PAGE
        while True:
            left = {"bytes": free} if parts else {}
            page = self._call("jobs.list", {**args, "limit": limit, "cursor": cursor, **left})
            cursor, limit = page["next"], limit - page["count"]
            if page["jobs"]:
                parts.append(page["jobs"])
                free -= len(page["jobs"])
            if cursor is None or limit <= 0 or free < _ENOUGH:
                break
        resp.content_type = falcon.MEDIA_JSON
        resp.data = b'{"jobs":[%b],"next":%b}' % (
            self._urls(req).add_to_list(disclosed_list(b",".join(parts), principal_of(req))),
            json.dumps(cursor).encode("ascii"),
        )

    on_head = on_get

    def on_post_create(self, req: ApiRequest, resp: falcon.Response) -> None:
        """Create an empty job."""
        request = read_model(CreateRequest, req)
        body_digest = digest(request) if _given(req) else ""
        self._send_started(req, resp, self._create(request, _key(req, "create"), body_digest, _owner(req)))

    def on_post_run(self, req: ApiRequest, resp: falcon.Response) -> None:
        """Create and start a job; with ``wait=SECONDS`` also wait for its end."""
        request = read_one_of(run_model, req)
        patience = query.seconds(req, "wait")
        until = None if patience is None else time.monotonic() + patience
        info = self._run(request, _key(req, "run"), digest(request) if _given(req) else "", _owner(req), patience)
        connection, job = info["path"].split("/")[2:4]
        resp.set_header("Location", info["path"] + "/info")
        if until is None:
            self._send_started(req, resp, info)
        else:
            self._wait(req, resp, connection, job, max(0.0, until - time.monotonic()))

    def _run(
        self, request: RunRequest | TemplateRun, key: str, body_digest: str, owner: str | None, wait: float | None
    ) -> JobInfo:
        """Create and start a job. If the agent refuses the request, neither job nor key is left behind."""
        before = ""
        while True:
            start = {"request": request.start().model_dump(exclude_none=True), "key": f"{key} start"}
            queued = start if request.queue is not None else None
            created = self._create(request.create(), f"{key} create", body_digest, owner, queued)
            if created["phase"] == Phase.QUEUED:
                return created  # The broker starts it once an agent has it.
            connection, job = created["path"].split("/")[2:4]
            try:
                return self._start(connection, job, request.start(), f"{key} start", wait)
            except InvalidRequest:
                self._withdraw(connection, job, f"{key} create")
                raise
            except NotFound:
                # The same request may have been sent twice at once, and the other one removed the job of both.
                if not body_digest or job == before:
                    raise
                before = job

    def _withdraw(self, connection: str, job: str, key: str) -> None:
        """Remove a job that was not started, and its key: it would occupy a slot of its agent for ever."""
        try:
            self._call("jobs.remove", {"connection": connection, "job": job, "key": key})
        except NotFound:
            _log.debug("event=job_withdrawn_already job=%s", job)
        except PRouterError as error:
            _log.warning("event=job_not_withdrawn job=%s error=%r", job, error.detail)


class Job(_Calls):
    """The resources below ``JOB_PATH``."""

    def on_get_info(self, req: ApiRequest, resp: falcon.Response, connection: str, job: str) -> None:
        """Send the job's info, with ``usage=1`` with current CPU time and memory from the agent."""
        args = {"connection": connection, "job": job, "usage": query.flag(req, "usage")}
        self._send(req, resp, self._call("jobs.info", args)["job"])

    on_head_info = on_get_info

    def on_post_info(self, req: ApiRequest, resp: falcon.Response, connection: str, job: str) -> None:
        """Send the job's info to old clients, which use POST."""
        discard_body(req)
        self.on_get_info(req, resp, connection, job)

    def on_get_explain(self, req: ApiRequest, resp: falcon.Response, connection: str, job: str) -> None:
        """Say in words why the job waits, has ended or cannot be reached."""
        told = self._call("jobs.explain", {"connection": connection, "job": job})
        info = told["job"]
        text = "; ".join(finding["text"] for finding in told["findings"])
        answer = {name: info[name] for name in ("uid", "name", "state", "phase", "position")}
        send_json(resp, {**answer, "text": text, "findings": told["findings"]})

    def on_post_start(self, req: ApiRequest, resp: falcon.Response, connection: str, job: str) -> None:
        """Start the job, and respond once it runs and its ports are known, or with 202 while it is queued."""
        request = read_one_of(start_model, req)
        wait = query.seconds(req, "wait")
        self._send_started(req, resp, self._start(connection, job, request, _key(req, f"start {job}"), wait))

    def on_post_wait(self, req: ApiRequest, resp: falcon.Response, connection: str, job: str) -> None:
        """Respond once the job has ended or does not run, or after ``timeout`` seconds."""
        timeout = query.seconds(req, "timeout")
        discard_body(req)
        self._wait(req, resp, connection, job, timeout)

    def on_post_remove(self, req: ApiRequest, resp: falcon.Response, connection: str, job: str) -> None:
        """End the job's processes, delete its sandbox and its record, and send its last info."""
        discard_body(req)
        self._send(req, resp, self._call("jobs.remove", {"connection": connection, "job": job})["job"])

    def on_post_signal(self, req: ApiRequest, resp: falcon.Response, connection: str, job: str) -> None:
        """Send a signal to the job's processes."""
        request = read_model(SignalRequest, req)
        args = {"connection": connection, "job": job, "signal": request.signal}
        self._send(req, resp, self._call("jobs.signal", args)["job"])

    def on_post_stop(self, req: ApiRequest, resp: falcon.Response, connection: str, job: str) -> None:
        """Send SIGTERM to the process tree, SIGKILL after the grace period, and respond once the job has ended."""
        request = read_model(StopRequest, req, optional=True)
        args = {"connection": connection, "job": job, "grace": request.grace}
        self._send(req, resp, self._call("jobs.stop", args, timeout=request.grace + _CALL_TIMEOUT)["job"])
