"""Why the proxy does not forward a request: errors of its own, and obstacles in the way to a job."""

from __future__ import annotations

import logging
from collections.abc import Callable

from prouter.access.credentials import SIGN_IN
from prouter.access.roles import Principal, Role, is_allowed, refusal
from prouter.errors import (
    AgentUnavailable,
    Forbidden,
    JobEnded,
    JobStarting,
    JobUnreachable,
    PRouterError,
    Unauthorized,
)
from prouter.jobs import Reason, State
from prouter.limits.requests import RequestLimits
from prouter.web.proxy.addresses.forwarded import Forwarded
from prouter.web.route_roles import JOB_HTTP, NEEDS
from prouter.web.routes import JobRoute

__all__ = [
    "ClientTooSlow",
    "ConnectRefused",
    "LoopDetected",
    "MethodRefused",
    "job_ended",
    "not_allowed",
    "not_running",
    "obstacle",
    "read_only",
    "unauthorized",
]


class ClientTooSlow(PRouterError):
    """The client did not complete its request in time (RFC 9110 section 15.5.9)."""

    code = "body_timeout"
    status = 408
    level = logging.INFO


class ConnectRefused(PRouterError):
    """The client takes the router for a forward proxy. Passed on, both ends would disagree where the response ends."""

    code = "not_implemented"
    status = 501
    level = logging.INFO


class LoopDetected(PRouterError):
    """The request has come through this router before (RFC 5842 section 7.2)."""

    code = "loop_detected"
    status = 508
    level = logging.WARNING


class MethodRefused(PRouterError):
    """The router answers the path itself, and not with this method."""

    code = "method_not_allowed"
    status = 405
    level = logging.INFO


def obstacle(route: JobRoute) -> PRouterError | None:
    """Return why a request cannot be forwarded now, None if it can; status 503 marks what may pass by itself."""
    record = route.record
    if (found := not_running(route)) is not None:
        return found
    if not record.endpoint:
        return JobUnreachable(
            f"job '{record.uid}' has no HTTP server: it was started with port_expected_count 0 and without expose; "
            'a job with one needs expose, as {"port": "assign"}, or port_expected_count 1 if it reports its port',
            job=record.uid,
            state=record.state.value,
            code="no_endpoint",
        )
    return None


def not_running(route: JobRoute) -> PRouterError | None:
    """Return why nothing of a job can be reached now, None if it runs; status 503 marks what may pass by itself."""
    record = route.record
    state = record.state.value
    if record.ended:
        return job_ended(route)
    if record.client is not None and record.client == record.connection:
        return JobStarting(
            f"job '{record.uid}' waits in the queue for an agent with space", job=record.uid, state=state, retry_after=2
        )
    if not route.up:
        return AgentUnavailable(
            "the job's agent is out of reach at the moment", job=record.uid, state=state, retry_after=2
        )
    if record.queue is not None:
        why = f" ({record.queue['reason']})" if record.queue["reason"] else ""
        return JobStarting(f"job '{record.uid}' waits in its cluster's queue{why}", job=record.uid, retry_after=5)
    if record.state is State.NEW:
        return JobStarting(
            f"job '{record.uid}' has not been started: POST …/{record.uid}/start starts it",
            job=record.uid,
            state=state,
            retry_after=2,
        )
    if record.state is State.PENDING:
        return JobStarting(f"job '{record.uid}' is starting", job=record.uid, state=state, retry_after=2)
    return None


def job_ended(route: JobRoute) -> JobEnded:
    """Return the error for a request to a job that has ended."""
    record = route.record
    reason = record.error if record.reason is Reason.START_FAILED else None
    return JobEnded(reason or f"job '{record.uid}': {record.ending}", job=record.uid, state=record.state.value)


def unauthorized(
    forwarded: Forwarded, limits: RequestLimits | None, client_key: Callable[[Forwarded], str]
) -> PRouterError:
    """Return the error for a request without valid credentials: 401, or 429 if the client has sent too many.

    For a trusted proxy's user who may do nothing it is 403.
    """
    if forwarded.refused is not None:
        return forwarded.refused
    # A visitor has shown valid credentials, which only do not count for this request.
    if limits is None or forwarded.visitor is not None:
        return Unauthorized(SIGN_IN)
    failed = any(name.lower() == b"authorization" for name, _value in forwarded.head.headers)
    return limits.unauthenticated(client_key(forwarded), failed=failed) or Unauthorized(SIGN_IN)


def not_allowed(principal: Principal | None, route: JobRoute) -> PRouterError | None:
    """Return why somebody may not use a job's HTTP; None if that is allowed."""
    if principal is None:
        return Unauthorized(SIGN_IN)
    owner = route.record.owner
    if principal.job:
        if principal.job != route.record.uid:
            return Unauthorized(SIGN_IN)
        if principal.via == "share":
            return None
    if principal.role >= Role.OPERATOR or is_allowed(principal, NEEDS[JOB_HTTP], owner):
        return None
    return refusal(principal, NEEDS[JOB_HTTP], owner, job=route.record.uid)


def read_only(job: str, *, sandboxed: bool) -> Forbidden:
    """Return the error for a request that could change something, from the visitor of a share link that only reads."""
    why = (
        "visitors of share links below /jobs/ may only read (GET, HEAD and OPTIONS, no WebSockets); with "
        "control.job_domain in the router's configuration, links can be for everything"
        if sandboxed
        else 'this link is for reading only (GET, HEAD and OPTIONS, no WebSockets); ask for one with "methods": "all"'
    )
    return Forbidden(why, job=job, code="share_read_only")
