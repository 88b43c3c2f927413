"""The error hierarchy, for clients, logs and other processes.

Every error has a stable ``code`` (the ``code`` of RFC 9457 problem documents and of the ``X-PRouter-Error`` header), an
HTTP ``status`` and a log ``level``. Errors cross the fabric as maps ``{"type", "code", "detail", "job", "state",
"retry_after", "limit"}``; `from_wire` rebuilds them on the other side.
"""

from __future__ import annotations

import copy
import logging
import re
from typing import Any, ClassVar, NamedTuple

from prouter.texts import without_credentials

__all__ = [
    "AgentTimeout",
    "AgentUnavailable",
    "Conflict",
    "Forbidden",
    "InvalidRequest",
    "IsDirectory",
    "JobEnded",
    "JobStarting",
    "JobTimeout",
    "JobUnreachable",
    "KeyReused",
    "Limit",
    "LimitReached",
    "MadeBefore",
    "NoSpace",
    "NotFound",
    "NotSupported",
    "Overloaded",
    "PRouterError",
    "PreconditionFailed",
    "ProtocolError",
    "RangeNotSatisfiable",
    "StartFailed",
    "TooLarge",
    "TooManyRequests",
    "Unauthorized",
    "Unsupported",
    "from_wire",
]


_MOST_TOLD = 8192
"""Characters of a detail that a response holds, at most."""


class Limit(NamedTuple):
    """The limit that a request was over.

    Attributes:
        name: the configuration key, such as ``jobs.max``.
        value: of that key.
    """

    name: str
    value: float


class PRouterError(Exception):
    """Base of all errors of this project.

    Args:
        detail: one sentence for a person: the thing, what is wrong with it and, where it helps, what to do.
        job: the job's uid, if one is concerned.
        state: the job's state, if it matters.
        retry_after: seconds after which a retry makes sense; becomes ``Retry-After``.
        code: replaces the class's code, to distinguish finer cases.
        limit: the limit that the request was over, if the configuration sets one.
    """

    code: str = "internal"
    status: ClassVar[int] = 500
    level: ClassVar[int] = logging.ERROR

    def __init__(
        self,
        detail: str,
        *,
        job: str | None = None,
        state: str | None = None,
        retry_after: float | None = None,
        code: str | None = None,
        limit: Limit | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.job = job
        self.state = state
        self.retry_after = retry_after
        self.limit = limit
        if code is not None:
            self.code = code

    @property
    def passes(self) -> bool:
        """Whether the same request may succeed later: nothing is wrong with it, and what hindered it may end."""
        return self.status == LimitReached.status or (self.status >= 500 and self.status != NotSupported.status)

    @property
    def told(self) -> str:
        """The detail for clients, shortened and without credentials: a text of a client's own may be part of it."""
        detail = without_credentials(self.detail)
        return detail if len(detail) <= _MOST_TOLD else detail[: _MOST_TOLD - 1] + "…"

    @property
    def logged(self) -> str:
        """The detail for the log: its first line. What follows is a job's output, which may hold secrets."""
        return self.detail.partition("\n")[0]

    def without_output(self) -> PRouterError:
        """Return the error for those who may not read the job's logs: with the first line of its detail only."""
        shorter = copy.copy(self)
        shorter.detail = self.logged
        return shorter

    def to_wire(self) -> dict[str, Any]:
        """Return the error as a map for msgpack and JSON, without empty fields."""
        wire: dict[str, Any] = {"type": type(self).__name__, "code": self.code, "detail": self.detail}
        if self.job is not None:
            wire["job"] = self.job
        if self.state is not None:
            wire["state"] = self.state
        if self.retry_after is not None:
            wire["retry_after"] = self.retry_after
        if self.limit is not None:
            wire["limit"] = list(self.limit)
        return wire


class InvalidRequest(PRouterError):
    """The request itself is wrong: body, query or path."""

    code = "invalid_request"
    status = 400
    level = logging.INFO


class Unauthorized(PRouterError):
    """No valid credentials came with the request."""

    code = "unauthorized"
    status = 401
    level = logging.INFO


class Forbidden(PRouterError):
    """The credentials are valid but do not suffice, or a path leaves its sandbox."""

    code = "forbidden"
    status = 403
    level = logging.INFO


class NotFound(PRouterError):
    """No such connection, job, agent or file."""

    code = "not_found"
    status = 404
    level = logging.INFO


class Conflict(PRouterError):
    """The job or file is in the wrong state for this request: a job is started twice, for example."""

    code = "conflict"
    status = 409
    level = logging.INFO


class MadeBefore(Conflict):
    """An earlier request with the same idempotency key has made what is shown only once: a token or a share link.

    Args:
        made: id of the token or link, for the client that did not receive it.
    """

    def __init__(self, detail: str, *, made: str | None = None, **fields: Any) -> None:
        super().__init__(detail, **fields)
        self.made = made


class IsDirectory(Conflict):
    """The path names a directory, but a file is needed. A client that reads may list it instead."""

    code = "is_directory"


class PreconditionFailed(PRouterError):
    """A condition of the request, such as If-Match, does not hold: the file has changed."""

    code = "precondition_failed"
    status = 412
    level = logging.INFO


class Unsupported(PRouterError):
    """The body has a content coding or format that is not supported."""

    code = "unsupported"
    status = 415
    level = logging.INFO


class TooLarge(PRouterError):
    """A request body or an archive exceeds its limit."""

    code = "too_large"
    status = 413
    level = logging.INFO


class RangeNotSatisfiable(PRouterError):
    """The requested byte range lies outside the file."""

    code = "range_not_satisfiable"
    status = 416
    level = logging.INFO


class KeyReused(PRouterError):
    """An Idempotency-Key was used before, for a request with another body (draft-ietf-httpapi-idempotency-key-header,
    section 2.7).
    """

    code = "idempotency_key_reused"
    status = 422
    level = logging.INFO


class NotSupported(PRouterError):
    """The request needs a program or library that is not installed on the agent's machine."""

    code = "not_supported"
    status = 501
    level = logging.WARNING


class JobEnded(PRouterError):
    """A request under ``/http`` is for a job that has ended or was removed."""

    code = "job_ended"
    status = 424
    level = logging.INFO


class LimitReached(PRouterError):
    """A quota is exhausted, or no agent has a free slot."""

    code = "limit_reached"
    status = 429
    level = logging.WARNING


class TooManyRequests(LimitReached):
    """Requests come too fast. Its log line is one for developers, because a flood would fill the log."""

    code = "too_many_requests"
    level = logging.DEBUG


class StartFailed(PRouterError):
    """The job did not start; the detail holds the end of its stderr."""

    code = "start_failed"
    status = 502
    level = logging.WARNING


class JobUnreachable(PRouterError):
    """The job refused or reset the connection, or violated HTTP."""

    code = "job_unreachable"
    status = 502
    level = logging.WARNING


class JobStarting(PRouterError):
    """The job has not started, or is not ready yet."""

    code = "job_starting"
    status = 503
    level = logging.INFO


class AgentUnavailable(PRouterError):
    """The job's agent has no connection to the router, or refused the link."""

    code = "agent_unavailable"
    status = 503
    level = logging.WARNING


class Overloaded(PRouterError):
    """A limit is reached, or the router drains."""

    code = "overloaded"
    status = 503
    level = logging.WARNING


class JobTimeout(PRouterError):
    """The job did not respond in time."""

    code = "job_timeout"
    status = 504
    level = logging.WARNING


class AgentTimeout(PRouterError):
    """The agent is linked, but did not answer in time."""

    code = "agent_timeout"
    status = 504
    level = logging.WARNING


class NoSpace(PRouterError):
    """The disk is full, or the sandbox exceeds its quota."""

    code = "no_space"
    status = 507
    level = logging.WARNING


class ProtocolError(PRouterError):
    """A peer sent something that the fabric's protocol does not allow."""

    code = "protocol_error"
    status = 502
    level = logging.WARNING


_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_LARGEST = 2**63


def _classes(base: type[PRouterError]) -> dict[str, type[PRouterError]]:
    found = {base.__name__: base}
    for child in base.__subclasses__():
        found.update(_classes(child))
    return found


def from_wire(wire: dict[str, Any]) -> PRouterError:
    """Rebuild an error that crossed the fabric; an unknown type becomes a plain `PRouterError`.

    The map comes from a peer, and its fields become header fields and log lines, so malformed fields are left out.
    """
    cls = _classes(PRouterError).get(str(wire.get("type")), PRouterError)
    code, job, state, retry_after = (wire.get(name) for name in ("code", "job", "state", "retry_after"))
    return cls(
        str(wire.get("detail", "unknown error")),
        job=job if isinstance(job, str) else None,
        state=state if isinstance(state, str) else None,
        retry_after=retry_after if _is_number(retry_after, 1e6) else None,
        code=code if isinstance(code, str) and _CODE.fullmatch(code) else None,
        limit=_limit(wire.get("limit")),
    )


def _limit(wire: object) -> Limit | None:
    if not isinstance(wire, list) or len(wire) != 2:
        return None
    name, value = wire
    if not isinstance(name, str) or _CODE.fullmatch(name) is None or not _is_number(value, _LARGEST):
        return None
    return Limit(name, value)


def _is_number(value: object, below: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < below
