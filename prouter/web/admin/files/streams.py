"""Streams to a job's sandbox: opened once the agent is there, written until it responds, read to the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prouter.errors import AgentTimeout, AgentUnavailable, Conflict, NotFound, ProtocolError, PRouterError
from prouter.fabric.stream import MAX_PIECE
from prouter.jobs import Reason, State
from prouter.transport.stream_io import CHUNK, StreamIO, StreamReset
from prouter.web.admin.files.owners_space import within_space
from prouter.web.prefaces import checked_preface, checked_result, patience_for, within

if TYPE_CHECKING:
    from prouter.web.router_client import RouterClient
    from prouter.web.routes import JobRoute

__all__ = ["StreamBody", "UploadIO", "open_io", "reset_error", "sandbox_route", "send_body"]

log = logging.getLogger("prouter.web")

_SLOW = frozenset({"file.delete"})
"""Kinds of streams whose preface arrives only after all the work is done, which may take long."""
SMALL = 64 * 1024
"""Bytes up to which a request body is read first, so that opening, bytes and end leave in one message."""


def sandbox_route(router: RouterClient, connection: str, job: str) -> JobRoute:
    """Return the route to a job's sandbox, after at most ``control.hold`` seconds for an agent that is away.

    Raises:
        NotFound: no such connection or job, or its sandbox was deleted.
        AgentUnavailable: the agent stayed away.
    """
    return router.usable_route(connection, job, _obstacle, time.monotonic() + router.config.control.hold)


def _obstacle(route: JobRoute) -> PRouterError | None:
    """Return why a job's sandbox cannot be reached, None if it can; status 503 marks what may pass by itself."""
    record = route.record
    job = record.uid
    if record.state is State.CLOSED:
        return NotFound(f"job '{job}' is not found: it was removed", job=job)
    if record.reason is Reason.AGENT_LOST:
        return NotFound(f"the sandbox of job '{job}' is not found: {record.ending}", job=job, code="agent_lost")
    if record.client is not None and record.client == record.connection:
        text = f"job '{job}' waits in the queue and has no sandbox yet; wait for an agent: POST {record.path}/wait"
        return Conflict(text, job=job, state=record.state.value, code="queued")
    if not route.up:
        state = record.state.value
        text = "the job's agent is out of reach at the moment"
        return AgentUnavailable(text, job=job, state=state, retry_after=2)
    return None


class UploadIO(StreamIO):
    """A stream that is written until the agent sends its result, which arrives early if it is an error."""

    __slots__ = ("_accepted", "_job", "_patience")

    def __init__(self, stream: Any, job: str, patience: float | None) -> None:
        super().__init__(stream)
        self._accepted = False
        self._job = job
        self._patience = patience

    def on_data(self, data: bytes) -> None:
        """Wake a writer that waits for the window: the agent's result may have arrived."""
        super().on_data(data)
        self.on_writable()

    def on_finish(self) -> None:
        """Wake a writer that waits for the window: the agent has finished."""
        super().on_finish()
        self.on_writable()

    def accept(self) -> None:
        """Wait until the agent accepts the upload.

        Raises:
            PRouterError: the agent refuses.
            AgentTimeout: the agent sends nothing for too long.
        """
        if not self._accepted:
            with within(self._patience, self._job):
                self.read_preface()
            self._accepted = True

    def offer(self, data: bytes) -> bool:
        """Write all of `data`; return False, with the rest unwritten, if the agent sent its result before the end.

        Raises:
            PRouterError: the agent refuses.
            StreamReset: the stream ended early.
        """
        view = data
        while view:
            if self._responded():
                if self._accepted:
                    return False
                self.accept()
                continue
            most = max(CHUNK, self.stream.piece)
            taken = self.stream.write(view if len(view) <= most else view[:most])
            view = view[taken:]
            if view and not taken and not self._responded():
                with within(self._patience, self._job):
                    self._wait_writable()
        return True

    def _responded(self) -> bool:
        """Return whether bytes of the agent wait to be read.

        Raises:
            StreamReset: the stream ended early.
        """
        if self._reset is not None or self.stream.reset_code is not None:
            raise self._error()
        return bool(self._chunks) or self._finished

    def result(self, patience: float | None) -> dict[str, Any]:
        """End the upload and wait for its result.

        Args:
            patience: seconds the agent may take; None for no limit.

        Raises:
            PRouterError: the upload failed.
            AgentTimeout: the agent sends nothing for too long.
        """
        self.close()
        self.accept()
        with within(patience, self._job):
            return self.read_preface()


def send_body(
    router: RouterClient, route: JobRoute, target: dict[str, Any], read: Callable[[int], bytes], *, patient: bool
) -> dict[str, Any]:
    """Send a request body through a new stream and return the agent's result. After any error the stream is reset.

    A small body is read first, so that opening, bytes and end travel in one message.

    Args:
        target: what to open; its ``size`` is the body's length, None if unknown.
        read: returns up to so many bytes of the body, none at its end; raises if the client disconnects before.
        patient: whether to wait until the agent accepts before the first byte is read (Expect: 100-continue).

    Raises:
        PRouterError: the agent's error, or the agent cannot be reached.
        LimitReached: the job's owner has as many bytes in sandboxes as is allowed.
    """
    size = target["size"]
    read = within_space(router, route, size, read)
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
        # The agent may have to unpack what was sent, or to write it to disk.
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
    """Open a stream that is only read, and return it and its preface.

    Args:
        close: whether to shut down our side at once; else `StreamBody` does so at the end.
        window: limit of the bytes in flight; ``fabric.window`` by default.

    Raises:
        PRouterError: the agent's error, or the agent cannot be reached.
        ProtocolError: the agent's reply is malformed.
        AgentTimeout: the agent does not reply in time.
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
    """Return the error that a reset means for the request that used the stream."""
    if error.code == "no_job":
        return NotFound(f"job '{route.record.uid}' is not found", job=route.record.uid)
    return AgentUnavailable(error.detail, job=route.record.uid, retry_after=2, code=error.code)


class StreamBody:
    """A response body read from a stream: all of it, or an exception that makes the server cut the connection.

    Args:
        length: bytes to come; None if unknown.
        job: uid of the job.
        patience: seconds the agent may pause before `AgentTimeout` ends the body; None for no limit.
        delivered: blocks until the client has everything, or raises. After it, our side of the stream is shut down, and
            the body ends when the agent, which waits for that, has done its last step. None if our side is shut down.
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
                    raise ProtocolError("the agent sent more bytes than it announced")
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
        except (StreamReset, AgentTimeout) as error:  # the client has the whole file
            log.warning("event=delivery_not_confirmed code=%s detail=%r", error.code, error.detail)

    def close(self) -> None:
        """Reset the stream unless it was read to its end; the server calls this in any case."""
        if not self._done and (self._left != 0 or self._delivered is not None):
            self._io.reset("client_gone", "the client disconnected")
