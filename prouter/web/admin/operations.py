"""What the HTTP API offers, as a table: the source of the OpenAPI document's paths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from prouter.jobs import State
from prouter.requests import BridgeRequest, CreateRequest, RunRequest, SignalRequest, StartRequest, StopRequest
from prouter.web.admin import responses

__all__ = ["OPERATIONS", "Operation", "Parameter"]

JSON = "application/json"
BYTES = "application/octet-stream"
SSE = "text/event-stream"
TEXT = "text/plain"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter or a request header.

    Attributes:
        kind: its JSON schema.
    """

    name: str
    kind: dict[str, Any]
    text: str
    where: str = "query"


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    Attributes:
        text: one sentence.
        body: what the request carries: a model, or media types of raw bytes.
        body_required: whether a request without it is refused.
        answers: by status, what comes back: a model, media types of raw bytes, or None for no body.
        errors: statuses of problem documents that are particular to it.
    """

    method: str
    path: str
    name: str
    text: str
    answers: Mapping[int, type[BaseModel] | tuple[str, ...] | None]
    parameters: tuple[Parameter, ...] = ()
    body: type[BaseModel] | tuple[str, ...] | None = None
    body_required: bool = True
    errors: tuple[int, ...] = field(default=(503,))


_FLAG: dict[str, Any] = {
    "type": "string",
    "enum": ["", "0", "1", "false", "true", "no", "yes", "off", "on"],
    "default": "0",
}
_TEXT: dict[str, Any] = {"type": "string"}
_MANY: dict[str, Any] = {"type": "array", "items": _TEXT}
_SECONDS: dict[str, Any] = {"type": "number", "minimum": 0}
_NUMBER: dict[str, Any] = {"type": "integer", "minimum": 0}

_JOB = "/jobs/{connection}/{job}"
_JOB_ERRORS = (400, 404, 503)
_FILE_ERRORS = (400, 403, 404, 409, 503)
_KEY = Parameter(
    "Idempotency-Key",
    {"type": "string", "minLength": 1, "maxLength": 255},
    "A repeat with the same key and body is done once.",
    "header",
)
_LAST_ID = Parameter("Last-Event-ID", _TEXT, "Go on after the event with this id.", "header")
_CONDITIONS = tuple(
    Parameter(name, _TEXT, f"RFC 9110: {name}.", "header")
    for name in ("Range", "If-Range", "If-None-Match", "If-Match", "If-Modified-Since", "If-Unmodified-Since")
)
_WRITE_CONDITIONS = tuple(
    one for one in _CONDITIONS if one.name in ("If-Match", "If-None-Match", "If-Unmodified-Since")
)
_INFO = {200: responses.JobInfo}
_WAITED: dict[int, Any] = {200: responses.JobInfo, 202: responses.JobInfo}


def _about_the_router() -> list[Operation]:
    connection = responses.Connection
    status = {200: responses.Status}
    return [
        Operation(
            "get", "/", "dashboard", "A page that shows agents and jobs, live.", {200: ("text/html",)}, errors=()
        ),
        Operation("get", "/info", "info", "Who this router is.", {200: responses.Info}),
        Operation(
            "get",
            "/connections",
            "connections",
            "All connections with agents; polls with If-None-Match are cheap.",
            {200: responses.Connections, 304: None},
            (Parameter("If-None-Match", _TEXT, "The ETag of the last answer.", "header"),),
        ),
        Operation(
            "get", "/connections/{connection}", "connection", "One connection.", {200: connection}, errors=(404, 503)
        ),
        Operation(
            "post",
            "/connections/{connection}/drain",
            "drain",
            "The agent takes no new jobs.",
            {200: connection},
            errors=_JOB_ERRORS,
        ),
        Operation(
            "post",
            "/connections/{connection}/resume",
            "resume",
            "It takes new jobs again.",
            {200: connection},
            errors=_JOB_ERRORS,
        ),
        Operation("post", "/shutdown", "shutdown", "Drain and exit.", {200: None}),
        Operation(
            "get",
            "/events",
            "events",
            "Job and agent changes as server-sent events: job, job.removed, agent; dropped when some were missed.",
            {200: (SSE,)},
            (_LAST_ID, Parameter("after", _TEXT, "The same, for clients that cannot set headers.")),
            errors=(400, 503),
        ),
        Operation("get", "/healthz", "healthz", "Whether this process answers.", status, errors=()),
        Operation("get", "/readyz", "readyz", "Whether new requests are welcome.", status),
        Operation("get", "/metrics", "metrics", "Figures for Prometheus.", {200: (TEXT,)}, errors=()),
        Operation("get", "/openapi.json", "openapi", "This document.", {200: (JSON,)}, errors=()),
    ]


def _about_jobs() -> list[Operation]:
    page = (
        Parameter(
            "state",
            {"type": "array", "items": {"type": "string", "enum": [state.value for state in State]}},
            "Only jobs in this state, or in one of these; without it, all that were not removed.",
        ),
        Parameter("agent", _TEXT, "Only jobs of the agent with this uid."),
        Parameter("name", _TEXT, "Only jobs of this name."),
        Parameter("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, "Jobs in a page."),
        Parameter("cursor", _TEXT, "`next` of the page before."),
    )
    wait = Parameter("wait", _SECONDS, "Also wait for the end, for so many seconds; then 202.")
    return [
        Operation("get", "/jobs", "list", "Jobs, newest first.", {200: responses.JobList}, page, errors=(400, 503)),
        Operation(
            "post",
            "/jobs/create",
            "create",
            "A new, empty job.",
            _INFO,
            (_KEY,),
            CreateRequest,
            errors=(400, 404, 422, 429, 503),
        ),
        Operation(
            "post",
            "/jobs/run",
            "run",
            "Create and start in one call.",
            _WAITED,
            (_KEY, wait),
            RunRequest,
            errors=(400, 404, 422, 429, 502, 503),
        ),
    ]


def _about_a_job() -> list[Operation]:
    usage = Parameter("usage", _FLAG, "Ask the agent for fresh CPU time and memory.")
    timeout = Parameter("timeout", _SECONDS, "Seconds to wait; then 202. Without it, no limit.")
    changing = (400, 404, 409, 503)
    return [
        Operation("get", f"{_JOB}/info", "jobInfo", "Its info.", _INFO, (usage,), errors=_JOB_ERRORS),
        Operation(
            "post", f"{_JOB}/info", "jobInfoByPost", "The same, for old clients.", _INFO, (usage,), errors=_JOB_ERRORS
        ),
        Operation(
            "post",
            f"{_JOB}/start",
            "start",
            "Start it; answers once it runs.",
            _INFO,
            (_KEY,),
            StartRequest,
            errors=(*changing, 422, 502),
        ),
        Operation("post", f"{_JOB}/wait", "wait", "Wait for its end.", _WAITED, (timeout,), errors=_JOB_ERRORS),
        Operation("post", f"{_JOB}/remove", "remove", "End it and delete its sandbox.", _INFO, errors=_JOB_ERRORS),
        Operation("post", f"{_JOB}/signal", "signal", "Send a signal.", _INFO, (), SignalRequest, errors=changing),
        Operation(
            "post",
            f"{_JOB}/stop",
            "stop",
            "SIGTERM, then SIGKILL.",
            _INFO,
            (),
            StopRequest,
            body_required=False,
            errors=changing,
        ),
        Operation(
            "get",
            f"{_JOB}/logs/{{name}}",
            "log",
            "stdout or stderr; as plain text, or as server-sent events by Accept.",
            {200: (TEXT, SSE), 204: None},
            (
                Parameter("follow", _FLAG, "Go on until the job has ended."),
                Parameter("tail", _NUMBER, "Begin so many lines before the end."),
                Parameter("offset", _NUMBER, "Begin at this byte."),
                _LAST_ID,
            ),
            errors=_JOB_ERRORS,
        ),
    ]


def _about_sandboxes() -> list[Operation]:
    file = f"{_JOB}/file/{{rest}}"
    found: dict[int, Any] = {200: (BYTES, JSON), 206: (BYTES, "multipart/byteranges"), 304: None}
    upload = (
        Parameter("executable", _FLAG, "Set the execute bits."),
        Parameter("mode", {"type": "string", "pattern": "^(0o)?0?[0-7]{1,3}$"}, "Permission bits, octal."),
        Parameter("directory", _FLAG, "Make a directory instead; the body is ignored."),
        *_WRITE_CONDITIONS,
    )
    uploading = (*_FILE_ERRORS, 412, 413, 415, 507)
    operations = [
        Operation("get", f"{_JOB}/file", "list_sandbox", "The listing of the sandbox.", {200: responses.Listing}),
        Operation(
            "get",
            file,
            "download",
            "A file, or the listing of a directory as JSON.",
            found,
            (Parameter("remove", _FLAG, "Delete the file once it was sent."), *_CONDITIONS),
            errors=(*_FILE_ERRORS, 412, 416),
        ),
        Operation(
            "head",
            file,
            "headers",
            "The download's headers.",
            {200: None, 304: None},
            _CONDITIONS,
            errors=(*_FILE_ERRORS, 412),
        ),
        Operation(
            "delete",
            file,
            "delete",
            "Delete a file or a directory.",
            {204: None},
            (Parameter("recursive", _FLAG, "A directory with all that is in it."), *_WRITE_CONDITIONS),
            errors=(*_FILE_ERRORS, 412),
        ),
    ]
    for method in ("post", "put"):
        operations.append(
            Operation(
                method,
                file,
                f"upload_{method}",
                "Upload a file.",
                {200: None, 201: None},
                upload,
                (BYTES,),
                errors=uploading,
            )
        )
    return operations


def _about_archives() -> list[Operation]:
    parameters = (
        Parameter("include", _MANY, "fnmatch masks of relative paths to pack."),
        Parameter("exclude", _MANY, "fnmatch masks of what not to pack; they win."),
        Parameter("compress", _FLAG, "tar.gz instead of tar."),
        Parameter("format", {"type": "string", "enum": ["tar", "tar.gz", "tar.zst", "zip"]}, "Kind of archive."),
    )
    packed = {200: ("application/x-tar", "application/gzip", "application/zstd", "application/zip")}
    packing = _FILE_ERRORS
    unpacking, conditions = (*_FILE_ERRORS, 412, 413, 415, 501, 507), _WRITE_CONDITIONS
    told = "Unpack a tar, compressed or not, a zip, or what else libarchive reads into it."
    operations = []
    for what, path in (("sandbox", f"{_JOB}/archive"), ("directory", f"{_JOB}/archive/{{rest}}")):
        text = f"The {what} as an archive."
        operations += [
            Operation("get", path, f"pack_{what}", text, packed, parameters, errors=packing),
            Operation("head", path, f"pack_{what}_head", "Its headers.", {200: None}, parameters, errors=packing),
            Operation("post", path, f"unpack_{what}", told, {200: None}, conditions, (BYTES,), errors=unpacking),
            Operation("put", path, f"unpack_{what}_put", told, {200: None}, conditions, (BYTES,), errors=unpacking),
        ]
    return operations


def _about_bridges() -> list[Operation]:
    path = f"{_JOB}/wsconnect"
    errors = (400, 404, 409, 502, 503)
    text = "Bridge the job's WebSocket at a path of the job with the one at `url`."
    return [
        Operation(
            "get", path, "bridges", "WebSocket bridges of the job.", {200: responses.Bridges}, errors=_JOB_ERRORS
        ),
        Operation("post", path, "bridge_root", text, {200: None}, (), BridgeRequest, errors=errors),
        Operation("post", f"{path}/{{rest}}", "bridge", text, {200: None}, (), BridgeRequest, errors=errors),
        Operation(
            "delete",
            f"{path}/{{rest}}",
            "unbridge",
            "End the bridge with this uid.",
            {204: None},
            errors=(404, 503, 504),
        ),
    ]


OPERATIONS: tuple[Operation, ...] = (
    *_about_the_router(),
    *_about_jobs(),
    *_about_a_job(),
    *_about_sandboxes(),
    *_about_archives(),
    *_about_bridges(),
)
"""Everything but the jobs' own HTTP (``/jobs/C/J/http/…``), which is whatever the job makes of it."""
