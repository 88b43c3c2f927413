"""Errors of the client, which mirror the codes and statuses of the HTTP API (docs/http-api.md, "Errors")."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = [
    "AgentUnavailable",
    "Conflict",
    "ConnectionFailed",
    "Forbidden",
    "InvalidRequest",
    "JobEnded",
    "JobUnreachable",
    "KeyReused",
    "NoAgent",
    "NoAgentFits",
    "NoAgentFree",
    "NoSpace",
    "NotFound",
    "NotSupported",
    "Overloaded",
    "PreconditionFailed",
    "RouterError",
    "StartFailed",
    "TimedOut",
    "TooLarge",
    "Unauthorized",
    "from_code",
    "from_response",
]

_MOST_SHOWN = 500
"""Characters of an answer that is not the router's, shown in an error."""


class RouterError(Exception):
    """Base of all errors that the router answers with.

    Attributes:
        detail: what is wrong and what to do, for people.
        status: HTTP status; None if there was no answer.
        code: what is wrong, for programs (docs/http-api.md).
        job: uid of the job that is concerned, or None.
        state: that job's state, where it matters.
        request_id: the request's name in the router's log, or None.
        retry_after: seconds after which the router expects a retry to succeed, or None.
        limit: configuration key of the limit that was reached, or None.
        made: id of the token or share link that an earlier request with the same idempotency key has made, or None.
    """

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        code: str = "internal",
        job: str | None = None,
        state: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        limit: str | None = None,
        made: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.made = made
        self.limit = limit
        self.detail = detail
        self.status = status
        self.code = code
        self.job = job
        self.state = state
        self.request_id = request_id
        self.retry_after = retry_after

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.detail!r}, status={self.status}, code={self.code!r})"


class InvalidRequest(RouterError):
    """The request is wrong (400, 405, 411, 415, 416, 421)."""


class Unauthorized(RouterError):
    """The router asks for an access token, and the request had no valid one (401)."""


class Forbidden(RouterError):
    """The token's role does not suffice, the job is somebody else's, or a path leaves the sandbox (403)."""


class NotFound(RouterError):
    """No such agent, job or file; the job was removed (404)."""


class Conflict(RouterError):
    """The job or file is in the wrong state: a job is started twice, for example (409)."""


class PreconditionFailed(RouterError):
    """The file has changed, or exists already (412)."""


class TooLarge(RouterError):
    """A request body or an archive exceeds its limit (413)."""


class KeyReused(RouterError):
    """An idempotency key was used before, with another request (422)."""


class JobEnded(RouterError):
    """The job has ended, so its server does not answer (424)."""


class Overloaded(RouterError):
    """A limit is reached, or the router drains or is overloaded: try again later (429, 503)."""


class NoAgent(RouterError):
    """No agent can take the job: none is connected or fits (404), all are full (429), draining or away (503)."""


class NoAgentFree(NoAgent, Overloaded):
    """All agents that fit are full, draining or away."""


class NoAgentFits(NoAgent, NotFound):
    """No connected agent fits."""


class AgentUnavailable(Overloaded):
    """The job's agent has no connection to the router, or does not answer in time (503, 504)."""


class StartFailed(RouterError):
    """The job did not start; `detail` has the end of its stderr (502)."""


class JobUnreachable(RouterError):
    """The job's server, or another server, cannot be reached or broke HTTP (502, 504)."""


class NoSpace(RouterError):
    """The disk is full, or the sandbox exceeds its size limit (507)."""


class NotSupported(RouterError):
    """The agent, or this router, cannot do this (501)."""


class TimedOut(RouterError, TimeoutError):
    """The time that the caller allowed is over; the job goes on."""


class ConnectionFailed(RouterError, ConnectionError):
    """The router did not answer, or the connection was lost and could not be made again in time.

    Attributes:
        sent: whether the request may have been carried out.
    """

    def __init__(self, detail: str, *, sent: bool = False) -> None:
        super().__init__(detail, code="connection_failed")
        self.sent = sent


_BY_CODE: dict[str, type[RouterError]] = {
    "agent_draining": NoAgentFree,
    "agent_lost": AgentUnavailable,
    "agent_timeout": AgentUnavailable,
    "agent_unavailable": AgentUnavailable,
    "job_ended": JobEnded,
    "job_starting": Overloaded,
    "job_timeout": JobUnreachable,
    "job_unreachable": JobUnreachable,
    "no_space": NoSpace,
    "not_supported": NotSupported,
    "start_failed": StartFailed,
}
"""Classes of codes whose status alone does not tell them apart."""

_BY_STATUS: dict[int, type[RouterError]] = {
    400: InvalidRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    405: InvalidRequest,
    408: Overloaded,
    409: Conflict,
    411: InvalidRequest,
    412: PreconditionFailed,
    413: TooLarge,
    415: InvalidRequest,
    416: InvalidRequest,
    421: InvalidRequest,
    422: KeyReused,
    424: JobEnded,
    429: Overloaded,
    501: NotSupported,
    502: JobUnreachable,
    503: Overloaded,
    504: AgentUnavailable,
    507: NoSpace,
}

_PLACEMENT: dict[int, type[RouterError]] = {404: NoAgentFits, 429: NoAgentFree, 503: NoAgentFree}
"""Classes of errors of requests that create a job, where the status says what is wrong with the agents."""


_PLACEMENT_CODES = ("not_found", "limit_reached", "agent_unavailable", "agent_draining")


def from_code(
    code: str, detail: str, status: int | None = None, *, placing: bool = False, **fields: Any
) -> RouterError:
    """Return the error of a code, and of a status for codes that have no class of their own."""
    cls = _BY_CODE.get(code) or _BY_STATUS.get(status or 0, RouterError)
    if placing and code in _PLACEMENT_CODES:
        cls = _PLACEMENT.get(status or 0, cls)
    return cls(detail, status=status, code=code, **fields)


def from_response(status: int, headers: Mapping[str, str], content: bytes, *, placing: bool = False) -> RouterError:
    """Return the error that an answer tells of.

    Args:
        headers: with names in lower case.
        content: the answer's body, or its beginning.
        placing: whether the request creates a job.
    """
    problem = _problem(content)
    limit = problem.get("limit")
    limit_name = _text(limit.get("name")) if isinstance(limit, dict) else None
    retry_after = seconds(headers.get("retry-after"))
    code = problem.get("code") or headers.get("x-prouter-error")
    if not isinstance(code, str):
        return _foreign(status, headers, content, retry_after)
    return from_code(
        code,
        str(problem.get("detail") or f"the router answered {status}"),
        status,
        placing=placing and not (limit_name or "").startswith("limits."),
        limit=limit_name,
        made=_text(problem.get("made")),
        job=_text(problem.get("job")),
        state=_text(problem.get("state")),
        request_id=_text(problem.get("request_id")) or headers.get("x-request-id"),
        retry_after=retry_after,
    )


def _foreign(status: int, headers: Mapping[str, str], content: bytes, retry_after: float | None) -> RouterError:
    """Return the error of an answer that some server between client and router gave."""
    if 300 <= status < 400:
        detail = f"the URL leads elsewhere ({status} to {headers.get('location', 'nowhere')}): use the router's own URL"
        return RouterError(detail, status=status, code="redirected")
    if status < 300:
        return RouterError("the answer is not a router's: check the URL", status=status, code="not_a_router")
    shown = content[:_MOST_SHOWN].decode("utf-8", "replace").strip()
    cls = _BY_STATUS.get(status, RouterError)
    if status in (502, 504):
        cls = Overloaded
    detail = f"a server on the way to the router answered {status}" + (f": {shown}" if shown else "")
    return cls(detail, status=status, code="gateway", retry_after=retry_after)


def seconds(text: str | None) -> float | None:
    """Return a Retry-After of seconds; None for none, or for a date."""
    return float(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 8 else None


def _problem(content: bytes) -> dict[str, Any]:
    try:
        problem = json.loads(content)
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
