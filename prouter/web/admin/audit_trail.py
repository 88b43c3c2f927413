"""Falcon middleware that writes what changed something, or was refused, into the audit log."""

from __future__ import annotations

from typing import Any

import falcon

from prouter.web.admin.operations import OPERATIONS
from prouter.web.admin.requests.context import ApiRequest
from prouter.web.audit import AuditLog

__all__ = ["AuditTrail"]

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_READING = frozenset({"jobInfoByPost", "wait"})
"""Operations that change nothing although their method would."""
_NAMES = {(operation.method.upper(), operation.path): operation.name for operation in OPERATIONS}
_OPENS = "tcp"
"""Opens the job, as ``upgrade`` does."""
_REMOVES = "download"
"""Deletes the file that it sends if ``remove`` is set."""
_UNKNOWN = "unknown"
"""For paths and methods that do not exist, and for requests that are refused before their path is looked at."""


class AuditTrail:
    """Writes a line for each request that changes something, whatever its result.

    Args:
        audit: the audit log.
    """

    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit

    def process_response(self, req: ApiRequest, resp: falcon.Response, _resource: Any, _succeeded: bool) -> None:
        """Falcon calls this after the resource, also after errors."""
        operation = self._operation(req)
        if operation in _READING:
            return
        changes = operation == _OPENS or (operation == _REMOVES and "remove" in req.params)
        if req.method in _SAFE and not changes:
            return
        env = req.env
        self._audit.write(
            operation,
            principal=env.get("prouter.principal"),
            address=env.get("REMOTE_ADDR") or "unix",
            forwarded_for=env.get("prouter.forwarded_for", ""),
            method=req.method,
            path=req.raw_path,
            job=env.get("prouter.job"),
            status=resp.status_code,
            request=req.id,
            about=env.get("prouter.about"),
        )

    def process_resource(self, req: ApiRequest, _resp: Any, _resource: Any, params: dict[str, Any]) -> None:
        """Falcon calls this before the resource: remember the job that the path names."""
        if "job" in params:
            req.env["prouter.job"] = params["job"]

    def _operation(self, req: ApiRequest) -> str:
        template = (req.uri_template or "").replace("{rest:path}", "{rest}")
        for path in (template, f"{template}/{{rest}}"):
            name = _NAMES.get((req.method, path))
            if name is not None:
                return name
        return _UNKNOWN
