"""The operations of the HTTP API as a table, from which the OpenAPI document is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from prouter.jobs import State
from prouter.requests import (
    BridgeRequest,
    CreateRequest,
    RunRequest,
    SignalRequest,
    StartRequest,
    StopRequest,
    TokenRequest,
)
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
        kind: JSON schema of the value.
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
        body: the request body: a model, or media types of raw bytes.
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
    "Requests with the same key and body take effect once.",
    "header",
)
_LAST_ID = Parameter("Last-Event-ID", _TEXT, "Continue after the event with this id.", "header")
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
        Operation("get", "/info", "info", "Name, uid and platform of this router.", {200: responses.Info}),
        Operation(
            "get",
            "/connections",
            "connections",
            "All connections to agents; polling with If-None-Match is cheap.",
            {200: responses.Connections, 304: None},
            (Parameter("If-None-Match", _TEXT, "The ETag of the last response.", "header"),),
        ),
        Operation(
            "get", "/connections/{connection}", "connection", "One connection.", {200: connection}, errors=(404, 503)
        ),
        Operation(
            "post",
            "/connections/{connection}/drain",
            "drain",
            "Stop placing new jobs on the agent.",
            {200: connection},
            errors=_JOB_ERRORS,
        ),
        Operation(
            "post",
            "/connections/{connection}/resume",
            "resume",
            "Place new jobs on the agent again.",
            {200: connection},
            errors=_JOB_ERRORS,
        ),
        Operation("post", "/shutdown", "shutdown", "Drain the router and end it.", {200: None}),
        Operation(
            "get",
            "/events",
            "events",
            "Changes of jobs and agents as server-sent events: job, job.removed, agent; dropped if events were missed.",
            {200: (SSE,)},
            (_LAST_ID, Parameter("after", _TEXT, "The same as Last-Event-ID, for clients that cannot set headers.")),
            errors=(400, 503),
        ),
        Operation("get", "/healthz", "healthz", "Whether this process responds.", status, errors=()),
        Operation("get", "/readyz", "readyz", "Whether the router takes new requests.", status),
        Operation("get", "/metrics", "metrics", "Metrics for Prometheus.", {200: (TEXT,)}, errors=()),
        Operation("get", "/openapi.json", "openapi", "This document.", {200: (JSON,)}, errors=()),
    ]


def _about_access() -> list[Operation]:
    return [
        Operation("get", "/whoami", "whoami", "Whom the credentials let in.", {200: responses.WhoAmI}, errors=()),
        Operation("get", "/tokens", "tokens", "All access tokens, without their texts.", {200: responses.Tokens}),
        Operation(
            "post",
            "/tokens",
            "createToken",
            "A new access token; its text is shown this once.",
            {201: responses.NewToken},
            (_KEY,),
            TokenRequest,
            errors=(400, 409, 503),
        ),
        Operation(
            "delete",
            "/tokens/{token}",
            "revokeToken",
            "Revoke a token; answers once no worker accepts it.",
            {204: None},
            errors=(404, 409, 503),
        ),
    ]


def _about_jobs() -> list[Operation]:
    page = (
        Parameter(
            "state",
            {"type": "array", "items": {"type": "string", "enum": [state.value for state in State]}},
            "Only jobs in one of these states; without it, all that were not removed.",
        ),
        Parameter("agent", _TEXT, "Only jobs of the agent with this uid."),
        Parameter("name", _TEXT, "Only jobs of this name."),
        Parameter("owner", _TEXT, "Only jobs that were created with access tokens of this name."),
        Parameter("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, "Jobs in a page."),
        Parameter("cursor", _TEXT, "`next` of the previous page."),
    )
    wait = Parameter("wait", _SECONDS, "Seconds to wait for the job's end; then 202.")
    return [
        Operation("get", "/jobs", "list", "Jobs, newest first.", {200: responses.JobList}, page, errors=(400, 503)),
        Operation(
            "post",
            "/jobs/create",
            "create",
            "Create an empty job.",
            _INFO,
            (_KEY,),
            CreateRequest,
            errors=(400, 404, 422, 429, 503),
        ),
        Operation(
            "post",
            "/jobs/run",
            "run",
            "Create and start a job in one request.",
            _WAITED,
            (_KEY, wait),
            RunRequest,
            errors=(400, 404, 422, 429, 502, 503),
        ),
    ]


def _about_a_job() -> list[Operation]:
    usage = Parameter("usage", _FLAG, "Ask the agent for current CPU time and memory.")
    timeout = Parameter("timeout", _SECONDS, "Seconds to wait; then 202. Without it, no limit.")
    changing = (400, 404, 409, 503)
    return [
        Operation("get", f"{_JOB}/info", "jobInfo", "Info of a job.", _INFO, (usage,), errors=_JOB_ERRORS),
        Operation(
            "post",
            f"{_JOB}/info",
            "jobInfoByPost",
            "Info of a job, for old clients.",
            _INFO,
            (usage,),
            errors=_JOB_ERRORS,
        ),
        Operation(
            "post",
            f"{_JOB}/start",
            "start",
            "Start a job; the response follows once it runs.",
            _INFO,
            (_KEY,),
            StartRequest,
            errors=(*changing, 422, 502),
        ),
        Operation("post", f"{_JOB}/wait", "wait", "Wait for a job's end.", _WAITED, (timeout,), errors=_JOB_ERRORS),
        Operation("post", f"{_JOB}/remove", "remove", "End a job and delete its sandbox.", _INFO, errors=_JOB_ERRORS),
        Operation(
            "post",
            f"{_JOB}/signal",
            "signal",
            "Send a signal to a job's processes.",
            _INFO,
            (),
            SignalRequest,
            errors=changing,
        ),
        Operation(
            "post",
            f"{_JOB}/stop",
            "stop",
            "Stop a job: SIGTERM, then SIGKILL.",
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
                Parameter("follow", _FLAG, "Continue until the job has ended."),
                Parameter("tail", _NUMBER, "Begin this many lines before the end."),
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
        Operation(
            "get",
            f"{_JOB}/file",
            "list_sandbox",
            "The listing of the sandbox.",
            {200: responses.Listing},
            errors=_FILE_ERRORS,
        ),
        Operation(
            "get",
            file,
            "download",
            "A file, or the listing of a directory as JSON.",
            found,
            (Parameter("remove", _FLAG, "Delete the file after the client has received all of it."), *_CONDITIONS),
            errors=(*_FILE_ERRORS, 412, 416),
        ),
        Operation(
            "head",
            file,
            "headers",
            "Headers of a download.",
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
            (Parameter("recursive", _FLAG, "Delete a directory with everything in it."), *_WRITE_CONDITIONS),
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
        Parameter("exclude", _MANY, "fnmatch masks of relative paths not to pack; they take precedence."),
        Parameter("compress", _FLAG, "tar.gz instead of tar."),
        Parameter("format", {"type": "string", "enum": ["tar", "tar.gz", "tar.zst", "zip"]}, "Kind of archive."),
    )
    packed = {200: ("application/x-tar", "application/gzip", "application/zstd", "application/zip")}
    packing = _FILE_ERRORS
    unpacking, conditions = (*_FILE_ERRORS, 412, 413, 415, 501, 507), _WRITE_CONDITIONS
    unpack = "Unpack a tar, compressed or not, a zip, or another archive that libarchive reads."
    operations = []
    for what, path in (("sandbox", f"{_JOB}/archive"), ("directory", f"{_JOB}/archive/{{rest}}")):
        text = f"The {what} as an archive."
        operations += [
            Operation("get", path, f"pack_{what}", text, packed, parameters, errors=packing),
            Operation(
                "head", path, f"pack_{what}_head", "Headers of the archive.", {200: None}, parameters, errors=packing
            ),
            Operation("post", path, f"unpack_{what}", unpack, {200: None}, conditions, (BYTES,), errors=unpacking),
            Operation("put", path, f"unpack_{what}_put", unpack, {200: None}, conditions, (BYTES,), errors=unpacking),
        ]
    return operations


def _about_bridges() -> list[Operation]:
    path = f"{_JOB}/wsconnect"
    errors = (400, 403, 404, 409, 502, 503)
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
    *_about_access(),
    *_about_jobs(),
    *_about_a_job(),
    *_about_sandboxes(),
    *_about_archives(),
    *_about_bridges(),
)
"""All operations but those of the jobs' own servers (``/jobs/C/J/http/…``)."""
