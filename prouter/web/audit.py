"""The audit log: one JSON line for each change, and for each job that somebody opens.

Every worker, and each command that changes tokens or invitations, appends its lines to the same file, each with one
write, so that their lines do not mix. The
file is opened again when it was moved away, as logrotate does it. A line holds no secret: neither queries nor fields of
requests, nor bodies.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
from collections import OrderedDict
from pathlib import Path
from typing import Any

from prouter.access.roles import Principal
from prouter.config.router import RouterAudit
from prouter.jobs import rfc3339
from prouter.texts import without_credentials

__all__ = ["AuditLog"]

log = logging.getLogger("prouter.audit")

_SESSION = 600.0
"""Seconds within which further requests of somebody to the same job belong to the same session."""
_SESSIONS = 10_000
"""Sessions remembered."""
_MOST = 1024
"""Characters of a text that a line repeats."""
_UNKNOWN = 60
"""Lines in a minute about requests without a valid token: whoever reaches the router could fill its disk."""
_PRIORITY = b"<86>"
"""Facility authpriv, severity informational (RFC 5424 section 6.2.1)."""


class AuditLog:
    """The audit log as one worker or command writes it.

    Args:
        config: where the lines go.
    """

    def __init__(self, config: RouterAudit) -> None:
        self._path = Path(config.file).expanduser() if config.file else None
        self._syslog = config.syslog
        self._socket: socket.socket | None = None
        self._descriptor = -1
        self._inode = 0
        self._trouble = ""
        """Why the last line could not be written."""
        self._sessions: OrderedDict[tuple[str, str, str, str], float] = OrderedDict()
        """By token, name, address and job, monotonic time at which the session began."""
        self._minute = 0
        self._unknown = 0
        """Requests without a valid token in that minute."""

    def write(
        self,
        operation: str,
        *,
        principal: Principal | None,
        address: str,
        forwarded_for: str,
        method: str,
        path: str,
        job: str | None,
        status: int | None,
        request: str,
        about: dict[str, Any] | None = None,
    ) -> None:
        """Append a line. If that fails, the log of the worker says so, and the request goes on.

        Args:
            operation: its name in ``/openapi.json``; ``http`` or ``upgrade`` for a job that is opened.
            principal: who sent the request; None for nobody with a valid token.
            address: of the client, or of the proxy in front.
            forwarded_for: what a trusted proxy says of the client's address; empty without one.
            path: of the request, without its query.
            job: uid of the job concerned; None without one.
            status: of the response; None if it is the job's own.
            request: its id.
            about: what was changed, if the path does not name it.
        """
        if principal is None and not self._has_room(int(time.monotonic() // 60)):
            return
        known = principal if principal is not None and principal.name else None
        line: dict[str, Any] = {
            "at": rfc3339(time.time()),
            "operation": operation,
            "name": known.name if known is not None else None,
            "role": principal.role.label if principal is not None else None,
            "via": principal.via if principal is not None else None,
            "token": known.id if known is not None else None,
            "from": address,
            "forwarded_for": forwarded_for[:_MOST] or None,
            "method": method,
            "path": without_credentials(path)[:_MOST],
            "job": job,
            "status": status,
            "request": request,
            "about": about,
        }
        self._write(line)

    def write_command(self, operation: str, *, user: str, status: int, about: dict[str, Any]) -> str:
        """Append a line about a change that a command made; return why that failed, empty if it did not.

        Args:
            operation: what it did, named as in ``/openapi.json`` where a request can do the same.
            user: the system's name of who ran it.
            status: what the response to such a request would have.
            about: what was changed.
        """
        line = dict.fromkeys(("role", "token", "forwarded_for", "method", "path", "job"))
        self._write(
            {
                "at": rfc3339(time.time()),
                "operation": operation,
                "name": user,
                "via": "command",
                "from": "local",
                **line,
                "status": status,
                "request": uuid.uuid4().hex[:16],
                "about": about,
            }
        )
        return self._trouble

    def _write(self, line: dict[str, Any]) -> None:
        data = json.dumps(line, separators=(",", ":")).encode("ascii")
        try:
            self._append(data + b"\n")
            self._send(data)
            self._trouble = ""
        except OSError as error:
            if not self._trouble:
                log.error("event=audit_failed error=%r", str(error))
            self._trouble = str(error) or type(error).__name__

    def begins_session(self, principal: Principal, address: str, job: str, now: float) -> bool:
        """Whether this request to a job is the first for a while of its sender; `now` is monotonic."""
        key = (principal.id, principal.name, address, job)
        since = self._sessions.get(key)
        if since is not None and now - since < _SESSION:
            return False
        self._sessions[key] = now
        self._sessions.move_to_end(key)
        if len(self._sessions) > _SESSIONS:
            self._sessions.popitem(last=False)
        return True

    def _has_room(self, minute: int) -> bool:
        """Count a request without a valid token; whether it gets a line."""
        if minute != self._minute:
            if self._unknown > _UNKNOWN:
                log.warning("event=audit_shortened unauthenticated=%d lines=%d", self._unknown, _UNKNOWN)
            self._minute, self._unknown = minute, 0
        self._unknown += 1
        return self._unknown <= _UNKNOWN

    def _append(self, data: bytes) -> None:
        if self._path is None:
            return
        if self._descriptor < 0 or not self._is_open():
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, 0o600)
            self._inode = os.fstat(self._descriptor).st_ino
        os.write(self._descriptor, data)

    def _is_open(self) -> bool:
        """Whether the file at the path is the one that is open."""
        try:
            return self._path is not None and self._path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def _send(self, data: bytes) -> None:
        if self._syslog is None:
            return
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        self._socket.sendto(_PRIORITY + b"prouter: " + data, self._syslog)
