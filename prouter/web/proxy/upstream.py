"""Connections to jobs: one fabric stream each, spoken HTTP/1.1 over, kept for reuse when idle.

A worker keeps at most `MAX_IDLE` idle streams per job, for at most `MAX_AGE` seconds; a stream that says anything
while idle is thrown away.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Protocol

from prouter.fabric.stream import Stream
from prouter.web.router_client import RouterClient
from prouter.web.routes import JobRoute

__all__ = ["MAX_AGE", "MAX_IDLE", "Upstream", "UpstreamPool", "UpstreamUser"]

MAX_IDLE = 128
"""Idle streams kept per job and worker."""
MAX_AGE = 30.0
"""Seconds a stream may stay idle."""
FRESH = 1.0
"""Seconds of idleness up to which a stream is used for a request that must not be repeated."""


class UpstreamUser(Protocol):
    """What uses an upstream connection at the moment."""

    def on_job_data(self, data: bytes) -> None:
        """Bytes of the job; to be consumed on `Upstream.stream`."""

    def on_job_finish(self) -> None:
        """The job writes nothing more."""

    def on_job_writable(self) -> None:
        """A write that was cut short may go on."""

    def on_job_reset(self, code: str, text: str) -> None:
        """The connection to the job is gone."""


class Upstream:
    """One connection to a job.

    Attributes:
        stream: its fabric stream.
        user: who gets what arrives; None while idle.
        job: uid of the job at its other end.
        reused: whether it served a request before.
    """

    takes_views = True

    __slots__ = ("_pool", "idle_since", "job", "reused", "stream", "user")

    def __init__(self, pool: UpstreamPool, job: str, stream: Stream) -> None:
        self._pool = pool
        self.job = job
        self.stream = stream
        self.user: UpstreamUser | None = None
        self.reused = False
        self.idle_since = 0.0
        stream.handler = self

    def release(self) -> None:
        """Give it back for the next request."""
        self.user = None
        self._pool._put(self)

    def discard(self, code: str = "done", text: str = "") -> None:
        """Close it; the job's side sees its connection end."""
        self.user = None
        self.stream.reset(code, text)

    def on_data(self, data: bytes) -> None:
        if self.user is not None:
            self.user.on_job_data(data)
        else:
            self._pool._drop(self)

    def on_finish(self) -> None:
        if self.user is not None:
            self.user.on_job_finish()
        else:
            self._pool._drop(self)

    def on_writable(self) -> None:
        if self.user is not None:
            self.user.on_job_writable()

    def on_reset(self, code: str, text: str) -> None:
        if self.user is not None:
            self.user.on_job_reset(code, text)
        else:
            self._pool._drop(self)

    def on_closed(self) -> None:
        """Both directions ended in order; `on_finish` has told already."""


class UpstreamPool:
    """A worker's connections to jobs."""

    def __init__(self, client: RouterClient) -> None:
        self._client = client
        self._idle: dict[str, deque[Upstream]] = {}

    @property
    def idle(self) -> int:
        """Connections waiting for reuse."""
        return sum(len(waiting) for waiting in self._idle.values())

    def get(self, route: JobRoute, *, repeatable: bool) -> Upstream:
        """A connection to the job, idle or new.

        Args:
            repeatable: whether the request may be sent again if an idle connection turns out to be dead.

        Raises:
            AgentUnavailable: the agent is away.
        """
        waiting = self._idle.get(route.record.uid)
        while waiting:
            upstream = waiting.pop()
            stream = upstream.stream
            if stream.closed:
                continue
            if not repeatable and time.monotonic() - upstream.idle_since > FRESH:
                waiting.append(upstream)
                break
            upstream.reused = True
            return upstream
        return self.new(route)

    def new(self, route: JobRoute) -> Upstream:
        """A new connection to the job.

        Raises:
            AgentUnavailable: the agent is away.
        """
        job = route.record.uid
        return Upstream(self, job, self._client.open_stream(route.connection, {"kind": "http", "job": job}))

    def sweep(self, now: float) -> None:
        """Close what has been idle for too long; to be called about once a second."""
        for job, waiting in list(self._idle.items()):
            while waiting and now - waiting[0].idle_since > MAX_AGE:
                waiting.popleft().discard("idle")
            if not waiting:
                del self._idle[job]

    def close(self) -> None:
        """Close all idle connections."""
        for waiting in self._idle.values():
            for upstream in list(waiting):
                upstream.discard("idle")
        self._idle.clear()

    def _put(self, upstream: Upstream) -> None:
        waiting = self._idle.setdefault(upstream.job, deque())
        upstream.idle_since = time.monotonic()
        waiting.append(upstream)
        if len(waiting) > MAX_IDLE:
            waiting.popleft().discard("idle")

    def _drop(self, upstream: Upstream) -> None:
        upstream.stream.reset("idle", "")
        waiting = self._idle.get(upstream.job)
        if waiting is not None and upstream in waiting:
            waiting.remove(upstream)
