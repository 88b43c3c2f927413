"""The operations of the HTTP API as a table, from which the OpenAPI document is made."""

from __future__ import annotations

from typing import Any

from prouter.jobs import State
from prouter.requests import (
    BridgeRequest,
    CreateRequest,
    RunRequest,
    SignalRequest,
    StartRequest,
    StopRequest,
)
from prouter.template_requests import TemplateRun, TemplateStart
from prouter.web.admin import responses
from prouter.web.admin.operation import (
    BYTES,
    IDEMPOTENCY_KEY,
    JOB_ERRORS,
    JSON,
    LAST_EVENT_ID,
    SSE,
    TEXT,
    TEXT_SCHEMA,
    OneOf,
    Operation,
    Parameter,
)
from prouter.web.admin.router_operations import about_access, about_the_router
from prouter.web.admin.way_operations import about_ways_in

__all__ = ["OPERATIONS", "Operation", "Parameter"]

_FLAG: dict[str, Any] = {
    "type": "string",
    "enum": ["", "0", "1", "false", "true", "no", "yes", "off", "on"],
    "default": "0",
}
_MANY: dict[str, Any] = {"type": "array", "items": TEXT_SCHEMA}
_SECONDS: dict[str, Any] = {"type": "number", "minimum": 0}
_NUMBER: dict[str, Any] = {"type": "integer", "minimum": 0}
_TIME: dict[str, Any] = {
    "anyOf": [{"type": "string", "format": "date-time"}, {"type": "string", "pattern": r"^\d{1,9}(\.\d{1,6})?[smhd]$"}]
}

_JOB = "/jobs/{connection}/{job}"
_FILE_ERRORS = (400, 403, 404, 409, 503)
_CONDITIONS = tuple(
    Parameter(name, TEXT_SCHEMA, f"RFC 9110: {name}.", "header")
    for name in ("Range", "If-Range", "If-None-Match", "If-Match", "If-Modified-Since", "If-Unmodified-Since")
)
_WRITE_CONDITIONS = tuple(
    one for one in _CONDITIONS if one.name in ("If-Match", "If-None-Match", "If-Unmodified-Since")
)
_INFO = {200: responses.JobInfo}
_WAITED: dict[int, Any] = {200: responses.JobInfo, 202: responses.JobInfo}


def _about_jobs() -> list[Operation]:
    page = (
        Parameter(
            "state",
            {"type": "array", "items": {"type": "string", "enum": [state.value for state in State]}},
            "Only jobs in one of these states; without it, all that were not removed.",
        ),
        Parameter("agent", TEXT_SCHEMA, "Only jobs of the agent with this uid."),
        Parameter("name", TEXT_SCHEMA, "Only jobs of this name."),
        Parameter("owner", TEXT_SCHEMA, "Only jobs that were created with access tokens of this name."),
        Parameter("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, "Jobs in a page."),
        Parameter("cursor", TEXT_SCHEMA, "`next` of the previous page."),
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
            (IDEMPOTENCY_KEY,),
            CreateRequest,
            errors=(400, 404, 422, 429, 503),
        ),
        Operation(
            "post",
            "/jobs/run",
            "run",
            "Create and start a job in one request.",
            _WAITED,
            (IDEMPOTENCY_KEY, wait),
            OneOf((RunRequest, TemplateRun)),
            errors=(400, 404, 422, 429, 502, 503),
        ),
    ]


def _about_a_job() -> list[Operation]:
    usage = Parameter("usage", _FLAG, "Ask the agent for current CPU time and memory.")
    timeout = Parameter("timeout", _SECONDS, "Seconds to wait; then 202. Without it, no limit.")
    changing = (400, 404, 409, 503)
    return [
        Operation("get", f"{_JOB}/info", "jobInfo", "Info of a job.", _INFO, (usage,), errors=JOB_ERRORS),
        Operation(
            "get",
            f"{_JOB}/explain",
            "explainJob",
            "Why a job waits, has ended or cannot be reached, in words.",
            {200: responses.Explanation},
            errors=JOB_ERRORS,
        ),
        Operation(
            "post",
            f"{_JOB}/info",
            "jobInfoByPost",
            "Info of a job, for old clients.",
            _INFO,
            (usage,),
            errors=JOB_ERRORS,
        ),
        Operation(
            "post",
            f"{_JOB}/start",
            "start",
            "Start a job; the response follows once it runs, or with 202 while it waits in a queue.",
            _WAITED,
            (
                IDEMPOTENCY_KEY,
                Parameter(
                    "wait",
                    _SECONDS,
                    "Seconds after which the response follows with 202 even if the job has not started. Without it, "
                    "only a job that waits in a queue is answered so, after `expose.timeout`.",
                ),
            ),
            OneOf((StartRequest, TemplateStart)),
            errors=(*changing, 422, 502),
        ),
        Operation("post", f"{_JOB}/wait", "wait", "Wait for a job's end.", _WAITED, (timeout,), errors=JOB_ERRORS),
        Operation("post", f"{_JOB}/remove", "remove", "End a job and delete its sandbox.", _INFO, errors=JOB_ERRORS),
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
                Parameter("since", _TIME, "Begin with what came since a time (RFC 3339), or for so long (10m)."),
                LAST_EVENT_ID,
            ),
            errors=(*JOB_ERRORS, 416),
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


def _about_ports() -> list[Operation]:
    return [
        Operation(
            "get",
            f"{_JOB}/tcp/{{port}}",
            "tcp",
            "A TCP connection to a port on which the job listens, by its number, or `http` for the job's server: "
            "with `Upgrade: tcp` raw bytes, with `Upgrade: websocket` binary messages.",
            {101: None},
            errors=(400, 403, 404, 424, 426, 501, 502, 503, 504),
        )
    ]


def _about_bridges() -> list[Operation]:
    path = f"{_JOB}/wsconnect"
    errors = (400, 403, 404, 409, 502, 503)
    text = "Bridge the job's WebSocket at a path of the job with the one at `url`."
    return [
        Operation("get", path, "bridges", "WebSocket bridges of the job.", {200: responses.Bridges}, errors=JOB_ERRORS),
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
    *about_the_router(),
    *about_access(),
    *_about_jobs(),
    *_about_a_job(),
    *about_ways_in(),
    *_about_sandboxes(),
    *_about_archives(),
    *_about_ports(),
    *_about_bridges(),
)
"""All operations but those of the jobs' own servers (``/jobs/C/J/http/…``)."""
