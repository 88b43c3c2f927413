"""Streams to a job's sandbox as requests use them: opened patiently, written until the agent speaks, read fully."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prouter.errors import AgentTimeout, AgentUnavailable, NotFound, ProtocolError, PRouterError
from prouter.fabric.stream import MAX_PIECE
from prouter.jobs import Reason, State
from prouter.transport.stream_io import CHUNK, StreamIO, StreamReset
from prouter.web.prefaces import checked_preface, checked_result, patience_for, within

if TYPE_CHECKING:
    from prouter.web.router_client import RouterClient
    from prouter.web.routes import JobRoute

__all__ = ["StreamBody", "UploadIO", "open_io", "reset_error", "sandbox_route", "send_body"]

log = logging.getLogger("prouter.web")

_SLOW = frozenset({"file.delete"})
"""Kinds of streams whose preface comes when everything is done, which may be much."""
SMALL = 64 * 1024
"""Bytes of a request body that are gathered before anything is sent; the agent writes as much without ado."""


def sandbox_route(router: RouterClient, connection: str, job: str) -> JobRoute:
    """Where the job's sandbox is; waits for an agent that is away, for at most ``control.hold`` seconds.

    Raises:
        NotFound: no such connection or job, or its sandbox is gone.
        AgentUnavailable: the agent stayed away.
    """
    return router.usable_route(connection, job, _obstacle, time.monotonic() + router.config.control.hold)


def _obstacle(route: JobRoute) -> PRouterError | None:
    """Why a job's sandbox cannot be reached; status 503 for what may pass."""
    record = route.record
    job = record.uid
    if record.state is State.CLOSED:
        return NotFound(f"job '{job}' is not found: it was removed", job=job)
    if record.reason is Reason.AGENT_LOST:
        return NotFound(f"the sandbox of job '{job}' is not found: {record.ending}", job=job, code="agent_lost")
    if not route.up:
        state = record.state.value
        text = "the job's agent is out of reach at the moment"
        return AgentUnavailable(text, job=job, state=state, retry_after=2)
    return None


class UploadIO(StreamIO):
    """A stream that is written until the agent has its final say, which may come early when it is an error."""

    __slots__ = ("_accepted", "_job", "_patience")

    def __init__(self, stream: Any, job: str, patience: float | None) -> None:
        super().__init__(stream)
        self._accepted = False
        self._job = job
        self._patience = patience

    def on_data(self, data: bytes) -> None:
        """See `StreamHandler`; a writer that waits for room is to look what the agent has to say."""
        super().on_data(data)
        self.on_writable()

    def on_finish(self) -> None:
        """See `StreamHandler`."""
        super().on_finish()
        self.on_writable()

    def accept(self) -> None:
        """Wait until the agent is ready to take bytes.

        Raises:
            PRouterError: it refuses.
            AgentTimeout: it says nothing for too long.
        """
        if not self._accepted:
            with within(self._patience, self._job):
                self.read_preface()
            self._accepted = True

    def offer(self, data: bytes) -> bool:
        """Write all of `data`; False, with the rest not written, when the agent gave its result before the end.

        Raises:
            PRouterError: the agent refuses.
            StreamReset: the stream ended early.
        """
        view = data
        while view:
            if self._answered():
                if self._accepted:
                    return False
                self.accept()
                continue
            most = max(CHUNK, self.stream.piece)
            taken = self.stream.write(view if len(view) <= most else view[:most])
            view = view[taken:]
            if view and not taken and not self._answered():
                with within(self._patience, self._job):
                    self._wait_writable()
        return True

    def _answered(self) -> bool:
        """Whether something of the agent waits to be read.

        Raises:
            StreamReset: the stream ended early.
        """
        if self._reset is not None or self.stream.reset_code is not None:
            raise self._error()
        return bool(self._chunks) or self._finished

    def result(self, patience: float | None) -> dict[str, Any]:
        """End the writing and wait for what came of it, for so long.

        Raises:
            PRouterError: it failed.
            AgentTimeout: the agent says nothing for too long.
        """
        self.close()
        self.accept()
        with within(patience, self._job):
            return self.read_preface()


def send_body(
    router: RouterClient, route: JobRoute, target: dict[str, Any], read: Callable[[int], bytes], *, patient: bool
) -> dict[str, Any]:
    """Send a request body through a new stream; the agent's result. Whatever goes wrong, the stream is reset.

    A small body is read first, so that opening, bytes and end travel in one message.

    Args:
        target: what to open; its ``size`` is the body's length, None when that is not known.
        read: returns up to so many bytes of the body, none at its end, and raises when the client goes away before.
        patient: wait until the agent is ready before the first byte is read (Expect: 100-continue).

    Raises:
        PRouterError: the agent's error, or no way to it.
    """
    size = target["size"]
    small = size is not None and size <= SMALL and not patient
    body = _read_all(read, size) if small else b""
    job, control = route.record.uid, router.config.control
    io = UploadIO(router.open_stream(route.connection, {"job": job, **target}), job, patience_for(router.config))
    finished = False
    try:
        if small:
            io.offer(body)
        else:
            _send_as_it_comes(io, read, patient)
        # What was sent may have to be unpacked, or brought to disk.
        result = checked_result(target, io.result(control.response_timeout or None))
        finished = True
        return result
    except StreamReset as error:
        raise reset_error(error, route) from error
    finally:
        if not finished:
            io.reset("upload_aborted", "the upload ended before its last byte")


def _read_all(read: Callable[[int], bytes], size: int) -> bytes:
    parts = []
    while size:
        data = read(size)
        if not data:
            break
        parts.append(data)
        size -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _send_as_it_comes(io: UploadIO, read: Callable[[int], bytes], patient: bool) -> None:
    if patient:
        io.accept()
    while data := read(max(CHUNK, io.stream.piece)):
        if not io.offer(data):
            return


def open_io(
    router: RouterClient, route: JobRoute, target: dict[str, Any], *, close: bool = True, window: int | None = None
) -> tuple[StreamIO, dict[str, Any]]:
    """Open a stream that is only read; it and its preface.

    Args:
        close: end our side at once; else `StreamBody` does so at the very end.
        window: most bytes in flight, if that is to be less than ``fabric.window``.

    Raises:
        PRouterError: the agent's error, or no way to it.
        ProtocolError: the agent's answer makes no sense.
        AgentTimeout: there is none.
    """
    io = StreamIO(router.open_stream(route.connection, {"job": route.record.uid, **target}, window=window))
    finished = False
    try:
        if close:
            io.close()
        slow = target["kind"].removesuffix(".if") in _SLOW
        patience = router.config.control.response_timeout or None if slow else patience_for(router.config)
        with within(patience, route.record.uid):
            preface = checked_preface(target, io.read_preface())
        finished = True
        return io, preface
    except StreamReset as error:
        raise reset_error(error, route) from error
    finally:
        if not finished:
            io.reset("cancelled", "the request has ended")


def reset_error(error: StreamReset, route: JobRoute) -> Exception:
    """What a reset means for the request that used the stream."""
    if error.code == "no_job":
        return NotFound(f"job '{route.record.uid}' is not found", job=route.record.uid)
    return AgentUnavailable(error.detail, job=route.record.uid, retry_after=2, code=error.code)


class StreamBody:
    """A response body read from a stream: all of it, or an exception that makes the server cut the connection.

    Args:
        length: bytes to come; None for as many as there are.
        job: whose sandbox they come from.
        patience: seconds the agent may say nothing; None for any time. `AgentTimeout` ends the body then.
        delivered: waits until the client has everything, or raises. Then our side of the stream is ended, for an agent
            that waits for that, and the body ends when the agent has done what it waited with. None: our side is ended.
    """

    def __init__(
        self,
        io: StreamIO,
        length: int | None,
        job: str,
        patience: float | None,
        *,
        delivered: Callable[[], None] | None = None,
    ) -> None:
        io.takes_views = True
        self._job = job
        self._patience = patience
        self._io = io
        self._left = length
        self._delivered = delivered
        self._done = False

    def __iter__(self) -> StreamBody:
        return self

    def __next__(self) -> bytes:
        if self._done:
            raise StopIteration
        data = b"" if self._left == 0 else self._read()
        if data:
            if self._left is not None:
                self._left -= len(data)
                if self._left < 0:
                    raise ProtocolError("the agent sent more bytes than it said")
            return data
        if self._left:
            raise ProtocolError(f"the transfer ended {self._left} bytes early", code="truncated")
        if self._delivered is not None:
            self._confirm(self._delivered)
        self._done = True
        raise StopIteration

    def _read(self) -> bytes:
        io = self._io
        if io.waits:
            with within(self._patience, self._job):
                return io.read(MAX_PIECE)
        return io.read(MAX_PIECE)

    def _confirm(self, delivered: Callable[[], None]) -> None:
        delivered()
        self._io.close()
        try:
            while self._read():
                pass
        except (StreamReset, AgentTimeout) as error:  # the client has all it asked for
            log.warning("event=delivery_not_confirmed code=%s detail=%r", error.code, error.detail)

    def close(self) -> None:
        """The server calls this in any case; a body that was not read to its end resets the stream."""
        if not self._done and (self._left != 0 or self._delivered is not None):
            self._io.reset("client_gone", "the client went away")
