"""What the table of operations is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

__all__ = [
    "BYTES",
    "FORM",
    "IDEMPOTENCY_KEY",
    "JOB_ERRORS",
    "JSON",
    "LAST_EVENT_ID",
    "SSE",
    "TEXT",
    "TEXT_SCHEMA",
    "OneOf",
    "Operation",
    "Parameter",
]

JSON = "application/json"
BYTES = "application/octet-stream"
FORM = "application/x-www-form-urlencoded"
SSE = "text/event-stream"
TEXT = "text/plain"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter or a request header.

    Attributes:
        kind: JSON schema of the value.
    """

    name: str
    kind: dict[str, Any]
    text: str
    where: str = "query"


@dataclass(frozen=True, slots=True)
class OneOf:
    """Models of which a request body fits one."""

    models: tuple[type[BaseModel], ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    Attributes:
        text: one sentence.
        body: the request body: a model or one of several, or media types of raw bytes.
        body_required: whether a request without a body is refused.
        success: the response body by status: a model, media types of raw bytes, or None for no body.
        errors: statuses of problem documents that are particular to the operation.
    """

    method: str
    path: str
    name: str
    text: str
    success: Mapping[int, type[BaseModel] | tuple[str, ...] | None]
    parameters: tuple[Parameter, ...] = ()
    body: type[BaseModel] | OneOf | tuple[str, ...] | None = None
    body_required: bool = True
    errors: tuple[int, ...] = field(default=(503,))


TEXT_SCHEMA: dict[str, Any] = {"type": "string"}
"""JSON schema of text."""
JOB_ERRORS = (400, 404, 503)
IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key",
    {"type": "string", "minLength": 1, "maxLength": 255},
    "Requests with the same key and body take effect once.",
    "header",
)
LAST_EVENT_ID = Parameter("Last-Event-ID", TEXT_SCHEMA, "Continue after the event with this id.", "header")
