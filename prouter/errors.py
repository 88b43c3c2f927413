"""The error hierarchy: what can go wrong, as clients, logs and other processes see it.

Every error has a stable ``code`` (the ``code`` of RFC 9457 problem documents and of the ``X-PRouter-Error`` header), an
HTTP ``status`` and a log ``level``. Errors cross the fabric as ``{"code", "detail", "job", "state", "retry_after"}``
maps and are rebuilt on the other side by `from_wire`.
"""

from __future__ import annotations

import logging
import re
from typing import Any, ClassVar

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
    "LimitReached",
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
    "Unauthorized",
    "Unsupported",
    "from_wire",
]


_MOST_TOLD = 8192
"""Characters of a detail that an answer repeats."""


class PRouterError(Exception):
    """Base of all errors of this project.

    Args:
        detail: one sentence for a person: what is wrong and, where it helps, what to do.
        job: the job's uid, where one is concerned.
        state: the job's state, where it matters.
        retry_after: seconds after which a repeat makes sense (becomes ``Retry-After``).
        code: overrides the class's code, to tell finer cases apart.
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
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.job = job
        self.state = state
        self.retry_after = retry_after
        if code is not None:
            self.code = code

    @property
    def told(self) -> str:
        """The detail as clients are told it: what they sent may have made it long."""
        return self.detail if len(self.detail) <= _MOST_TOLD else self.detail[: _MOST_TOLD - 1] + "…"

    def to_wire(self) -> dict[str, Any]:
        """The error as a msgpack- and JSON-ready map, empty fields left out."""
        wire: dict[str, Any] = {"type": type(self).__name__, "code": self.code, "detail": self.detail}
        if self.job is not None:
            wire["job"] = self.job
        if self.state is not None:
            wire["state"] = self.state
        if self.retry_after is not None:
            wire["retry_after"] = self.retry_after
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
    """The credentials are valid but not enough, or a path leaves its sandbox."""

    code = "forbidden"
    status = 403
    level = logging.INFO


class NotFound(PRouterError):
    """No such connection, job, agent or file."""

    code = "not_found"
    status = 404
    level = logging.INFO


class Conflict(PRouterError):
    """The thing is in the wrong state for this request, for example a job started twice."""

    code = "conflict"
    status = 409
    level = logging.INFO


class IsDirectory(Conflict):
    """The path names a directory where a file is needed: a reader may list it instead."""

    code = "is_directory"


class PreconditionFailed(PRouterError):
    """A condition of the request does not hold, such as If-Match: the file is another one by now."""

    code = "precondition_failed"
    status = 412
    level = logging.INFO


class Unsupported(PRouterError):
    """A body in a coding or format that is not understood here."""

    code = "unsupported"
    status = 415
    level = logging.INFO


class TooLarge(PRouterError):
    """A body or an archive is over its limit."""

    code = "too_large"
    status = 413
    level = logging.INFO


class RangeNotSatisfiable(PRouterError):
    """The byte range asked for lies outside the file."""

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
    """What is asked for takes something that is not installed where it would be done."""

    code = "not_supported"
    status = 501
    level = logging.WARNING


class JobEnded(PRouterError):
    """A request under ``/http`` met a job that has ended or was removed."""

    code = "job_ended"
    status = 424
    level = logging.INFO


class LimitReached(PRouterError):
    """A quota is used up, or no agent has a free slot."""

    code = "limit_reached"
    status = 429
    level = logging.WARNING


class StartFailed(PRouterError):
    """The job did not start; the detail holds the end of its stderr."""

    code = "start_failed"
    status = 502
    level = logging.WARNING


class JobUnreachable(PRouterError):
    """The job refused or reset the connection, or broke HTTP."""

    code = "job_unreachable"
    status = 502
    level = logging.WARNING


class JobStarting(PRouterError):
    """The job has not started, or is not ready yet."""

    code = "job_starting"
    status = 503
    level = logging.INFO


class AgentUnavailable(PRouterError):
    """The job's agent is away, or refused its link."""

    code = "agent_unavailable"
    status = 503
    level = logging.WARNING


class Overloaded(PRouterError):
    """A bound was hit, or the router drains."""

    code = "overloaded"
    status = 503
    level = logging.WARNING


class JobTimeout(PRouterError):
    """The job gave no answer in time."""

    code = "job_timeout"
    status = 504
    level = logging.WARNING


class AgentTimeout(PRouterError):
    """The agent is linked and gave no answer in time."""

    code = "agent_timeout"
    status = 504
    level = logging.WARNING


class NoSpace(PRouterError):
    """The disk is full, or the sandbox is over its size limit."""

    code = "no_space"
    status = 507
    level = logging.WARNING


class ProtocolError(PRouterError):
    """A fabric peer sent something the protocol does not allow."""

    code = "protocol_error"
    status = 502
    level = logging.WARNING


_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def _classes(base: type[PRouterError]) -> dict[str, type[PRouterError]]:
    found = {base.__name__: base}
    for child in base.__subclasses__():
        found.update(_classes(child))
    return found


def from_wire(wire: dict[str, Any]) -> PRouterError:
    """Rebuild an error that crossed the fabric; an unknown type becomes a plain `PRouterError`.

    Codes become header fields and all of it is shown and logged: what is no such thing is left out.
    """
    cls = _classes(PRouterError).get(str(wire.get("type")), PRouterError)
    code, job, state, retry_after = (wire.get(name) for name in ("code", "job", "state", "retry_after"))
    whole = isinstance(retry_after, (int, float)) and not isinstance(retry_after, bool) and 0 <= retry_after < 1e6
    return cls(
        str(wire.get("detail", "unknown error")),
        job=job if isinstance(job, str) else None,
        state=state if isinstance(state, str) else None,
        retry_after=retry_after if whole else None,
        code=code if isinstance(code, str) and _CODE.fullmatch(code) else None,
    )
