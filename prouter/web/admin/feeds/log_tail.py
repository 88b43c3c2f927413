"""A reader of a job's log: from a position on, across losses of the link, to an end that is known to be one."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import gevent

from prouter.errors import AgentTimeout, AgentUnavailable, NotFound, RangeNotSatisfiable
from prouter.jobs import Reason, State
from prouter.transport.stream_io import StreamIO, StreamReset
from prouter.web.admin.files.streams import open_io, reset_error, sandbox_route
from prouter.web.prefaces import patience_for

if TYPE_CHECKING:
    from prouter.web.router_client import RouterClient

__all__ = ["LogTail", "TailPosition"]

log = logging.getLogger("prouter.web")

_LASTING = frozenset({"path_lost", "worker_gone", "agent_gone", "overloaded", "unknown_stream"})
"""Codes of a stream's end that say nothing about the log: the reader opens another stream."""


_WINDOW = 128 * 1024
"""Receive window, bytes: a log may have many followers, and some of them may not read."""


class TailPosition:
    """The position at which reading starts.

    Attributes:
        offset: position in the log, bytes; None if not given.
        tail: number of lines before the end; None if not given.
        since: milliseconds since 1970; None if not given.
    """

    __slots__ = ("offset", "since", "tail")

    def __init__(self, offset: int | None, tail: int | None = None, since: int | None = None) -> None:
        self.offset = offset
        self.tail = tail
        self.since = since


class LogTail:
    """A log that is being read; the first stream to the agent is opened at once.

    Attributes:
        offset: position of the next byte `read` returns.

    Raises:
        PRouterError: there is no such job or log, or its agent cannot be reached.
    """

    def __init__(
        self, router: RouterClient, connection: str, job: str, name: str, start: TailPosition, *, follow: bool
    ) -> None:
        self._router = router
        self._connection = connection
        self._job = job
        self._name = name
        self._follow = follow
        self._io: StreamIO | None = None
        self.offset = 0
        self._patience = None if follow else patience_for(router.config)
        self._waited = 0.0
        """Seconds spent waiting for the agent since it last sent something."""
        self._open(start)

    def _open(self, start: TailPosition) -> None:
        route = sandbox_route(self._router, self._connection, self._job)
        target = {
            "kind": "log",
            "name": self._name,
            "offset": start.offset,
            "tail": start.tail,
            "since": start.since,
            "follow": self._follow,
        }
        self._io, preface = open_io(self._router, route, target, window=_WINDOW)
        self.offset = int(preface["offset"])

    def read(self, patience: float) -> bytes | None:
        """Return the next bytes; b"" at the end of the log, None if `patience` seconds passed without any.

        Raises:
            PRouterError: the rest of the log cannot be read, now or later.
            AgentTimeout: the agent paused for too long within a log that is not followed.
        """
        began = time.monotonic()
        most = patience if self._patience is None else min(patience, self._patience)
        data = self._next(most)
        self._waited = 0.0 if data is not None else self._waited + time.monotonic() - began
        if self._patience is not None and self._waited >= self._patience:
            raise AgentTimeout(f"the job's agent sent nothing for {self._patience:g} s", job=self._job, retry_after=5)
        return data

    def _next(self, patience: float) -> bytes | None:
        io = self._io
        if io is None:
            self._reopen()
            return None
        data: bytes | None = None
        try:
            with gevent.Timeout(patience, False):  # type: ignore[arg-type]
                data = io.read()
        except StreamReset as error:
            self._lost(error)
        if data:
            self.offset += len(data)
        return data

    def _reopen(self) -> None:
        """Continue where the last stream ended, as soon as the agent can be reached."""
        try:
            self._open(TailPosition(self.offset))
        except AgentUnavailable as error:
            log.debug("event=log_waits job=%s log=%s code=%s", self._job, self._name, error.code)
        except RangeNotSatisfiable:  # the job truncated its own log: begin again
            self._open(TailPosition(0))

    def _lost(self, error: StreamReset) -> None:
        self._io = None
        if error.code not in _LASTING:
            route = self._router.route(self._connection, self._job)
            raise reset_error(error, route) from error
        log.info("event=log_reopened job=%s log=%s offset=%d code=%s", self._job, self._name, self.offset, error.code)

    def ending(self) -> dict[str, Any]:
        """Return the job's info at the end of its log, after a moment in which the event of its end may arrive."""
        until = time.monotonic() + (2.0 if self._follow else 0.0)
        args = {"connection": self._connection, "job": self._job, "until": until}
        try:
            info: dict[str, Any] = self._router.call("jobs.wait", args, timeout=30)["job"]
        except NotFound:
            return {"state": State.CLOSED.value, "reason": Reason.REMOVED.value}
        return info

    def close(self) -> None:
        """Reset the stream."""
        if self._io is not None and not self._io.stream.closed:
            self._io.reset("client_gone", "the client disconnected")
