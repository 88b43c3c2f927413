"""Streams to a job's sandbox (files, archives, logs). Each has a greenlet; disk operations run in threads.

A stream begins with a preface (`prouter.transport.stream_io`) that says ok or carries an error. An error after bytes
were sent resets the stream. An error during an upload is the upload's result, and what still arrives is dropped.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar, cast

import gevent
from gevent.event import Event
from gevent.threadpool import ThreadPool

from prouter.agent.logs.job_log import JobLog
from prouter.agent.sandbox import rights
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.conditions import Conditions
from prouter.errors import InvalidRequest, PRouterError
from prouter.fabric.stream import Stream
from prouter.jobs import JobRecord
from prouter.processes.users import User
from prouter.transport.stream_io import StreamIO, StreamReset

__all__ = ["SMALL", "Jobs", "Transfer", "TransferIO", "Transfers"]

log = logging.getLogger("prouter.agent.relays")

SMALL = 64 * 1024
"""Bytes that are read or written on the event loop; a thread does more."""
_MOST = 4096
"""Transfers at the same time; a follower of a log counts as one."""
_REMOVAL_SECONDS = 1.0
"""Seconds that other requests wait at most for a deletion whose last byte is on its way."""

T = TypeVar("T")
Handler = Callable[["Transfer"], None]


class Jobs(Protocol):
    """What transfers need of the job manager."""

    def record(self, uid: str) -> JobRecord:
        """The job's record; raises `NotFound`."""

    def sandbox(self, uid: str) -> Sandbox:
        """The job's sandbox; raises `NotFound`."""

    def log(self, uid: str, name: str) -> JobLog:
        """The job's log; raises `NotFound`, `InvalidRequest`."""

    def sandbox_limit(self, uid: str) -> int | None:
        """Bytes the job's sandbox may hold; raises `NotFound`."""


class TransferIO(StreamIO):
    """A stream whose reset also sets an event.

    Attributes:
        alarm: set on a reset.
    """

    __slots__ = ("alarm",)

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream)
        self.alarm: Event | None = None

    def on_reset(self, code: str, text: str) -> None:
        """See `StreamHandler`."""
        super().on_reset(code, text)
        if self.alarm is not None:
            self.alarm.set()


class Removals:
    """Files that are deleted as soon as their reader has the last byte.

    A reader that has the last byte and requests the file again at once, on another connection, must not find it. So
    other requests to the same sandbox wait for the deletion, for a moment at most if the reader is slow.
    """

    def __init__(self) -> None:
        self._pending: dict[str, dict[Event, float]] = {}

    @contextlib.contextmanager
    def pending(self, uid: str) -> Iterator[None]:
        """Have other requests to this job's sandbox wait during the block."""
        done = Event()
        mine = self._pending.setdefault(uid, {})
        mine[done] = time.monotonic() + _REMOVAL_SECONDS
        try:
            yield
        finally:
            done.set()
            del mine[done]
            if not mine:
                self._pending.pop(uid, None)

    def wait(self, uid: str) -> None:
        """Wait for the deletions that are due in this job's sandbox, for a moment at most."""
        for done, deadline in list(self._pending.get(uid, {}).items()):
            done.wait(max(0.0, deadline - time.monotonic()))


class Transfer:
    """One stream and its target.

    Attributes:
        io: the stream.
        jobs: the job manager.
        uid: the job's uid.
        sync: whether an upload must be on disk before it is answered.
        sent: whether bytes of a download may have been sent, so that an error can only reset the stream.
    """

    def __init__(
        self,
        io: TransferIO,
        target: dict[str, Any],
        jobs: Jobs,
        *,
        pool: ThreadPool,
        removals: Removals,
        sync: bool,
    ) -> None:
        self.io = io
        self.jobs = jobs
        self.uid = str(target.get("job", ""))
        self.sync = sync
        self.sent = False
        self._target = target
        self._user: User | None = None
        self._pool = pool
        self._removals = removals

    def begin(self) -> None:
        """Take the rights of the job's user from here on; raises `NotFound`."""
        self._user = self.jobs.sandbox(self.uid).user

    def removal(self) -> contextlib.AbstractContextManager[None]:
        """Have other requests wait while this transfer's file is about to be deleted (`Removals`)."""
        return self._removals.pending(self.uid)

    def wait_for_removals(self) -> None:
        """Wait for deletions that are due (`Removals.wait`)."""
        self._removals.wait(self.uid)

    @property
    def sandbox(self) -> Sandbox:
        """The job's sandbox; raises `NotFound`."""
        return self.jobs.sandbox(self.uid)

    def run(self, function: Callable[..., T], *args: Any, **keywords: Any) -> T:
        """Call a function in a thread, without blocking the event loop; raises what it raises.

        It has the rights of the job's user.
        """
        value, error = self._pool.apply(_guarded, (self._user, function, args, keywords))
        if error is not None:
            raise error
        return cast("T", value)

    def here(self, function: Callable[..., T], *args: Any, **keywords: Any) -> T:
        """Call a function that neither blocks nor switches greenlets, with the rights of the job's user."""
        with rights.acting(self._user):
            return function(*args, **keywords)

    @property
    def limit(self) -> int | None:
        """Bytes that the sandbox may hold, None for any number; raises `NotFound`."""
        return self.jobs.sandbox_limit(self.uid)

    # -- the target ---------------------------------------------------------------------------------------------

    def path(self) -> bytes:
        """The path below the sandbox."""
        return self._get("path", bytes, b"")

    def text(self, key: str, default: str) -> str:
        """A text of the target."""
        return self._get(key, str, default)

    def flag(self, key: str) -> bool:
        """A truth value of the target."""
        return self._get(key, bool, False)

    def number(self, key: str) -> int | None:
        """A number of the target that is not negative; None if it has none."""
        if self._target.get(key) is None:
            return None
        value = self._get(key, int, 0)
        if value < 0:
            raise InvalidRequest(f"Invalid request: {key} must not be negative")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of texts of the target."""
        values = self._get(key, list, [])
        if not all(isinstance(value, str) for value in values):
            raise InvalidRequest(f"Invalid request: {key} must be a list of texts")
        return values

    def conditions(self) -> Conditions | None:
        """The conditions of the request; None if it has none."""
        wire = self._get("conditions", dict, {})
        return Conditions.from_wire(wire) if wire else None

    def _get(self, key: str, kind: type[T], default: T) -> T:
        value = self._target.get(key)
        if value is None:
            return default
        if not isinstance(value, kind):
            raise InvalidRequest(f"Invalid request: {key} must be of type {kind.__name__}")
        return value

    # -- the answer ---------------------------------------------------------------------------------------------

    def say(self, **facts: Any) -> None:
        """Send ok, as the preface or as an upload's result."""
        self.io.write_preface({"ok": True, **facts})

    def fail(self, error: PRouterError) -> None:
        """Tell the worker an error: in the preface, as the result, or by a reset."""
        if self.sent:
            self.io.reset(error.code, error.detail)
            return
        self.io.write_preface({"error": error.to_wire()})
        self.io.close()
        while self.io.read():
            pass


class Transfers:
    """All transfers of an agent.

    Args:
        jobs: the job manager.
        kinds: the function for each ``kind`` of target.
        threads: how many disk operations run at the same time.
        sync_uploads: whether uploads must be on disk before they are answered.
    """

    def __init__(self, jobs: Jobs, kinds: Mapping[str, Handler], threads: int, *, sync_uploads: bool = False) -> None:
        self._jobs = jobs
        self._kinds = kinds
        self._pool = ThreadPool(threads)
        self._sync = sync_uploads
        self._removals = Removals()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def open(self, stream: Stream, target: dict[str, Any]) -> None:
        """Start a transfer in a greenlet of its own."""
        handler = self._kinds.get(str(target.get("kind")))
        if handler is None:
            stream.reset("unknown_kind", f"this agent knows no streams of kind {target.get('kind')!r:.64}")
        elif self._count >= _MOST:
            stream.reset("overloaded", f"the agent carries {_MOST} transfers already")
        else:
            self._count += 1
            io, pool = TransferIO(stream), self._pool
            transfer = Transfer(io, target, self._jobs, pool=pool, removals=self._removals, sync=self._sync)
            gevent.spawn(self._carry_out, handler, transfer)

    def _carry_out(self, handler: Handler, transfer: Transfer) -> None:
        try:
            try:
                transfer.begin()
                transfer.wait_for_removals()
                handler(transfer)
            except StreamReset:
                raise
            except PRouterError as error:
                level = error.level if error.level > logging.INFO else logging.DEBUG
                log.log(level, "event=transfer_failed job=%s error=%r", transfer.uid, error.detail)
                transfer.fail(error)
        except StreamReset as reset:
            log.debug("event=transfer_reset job=%s code=%s text=%r", transfer.uid, reset.code, reset.detail)
        except Exception:
            log.exception("event=transfer_broken job=%s stream=%d", transfer.uid, transfer.io.stream.sid)
            transfer.io.reset("internal", "the agent failed at this; its log says why")
        finally:
            self._count -= 1

    def close(self) -> None:
        """End the threads."""
        with contextlib.suppress(gevent.Timeout), gevent.Timeout(1):
            self._pool.join()
        self._pool.kill()


def _guarded(
    user: User | None, function: Callable[..., T], args: Any, keywords: Any
) -> tuple[T | None, BaseException | None]:
    """Return exceptions as values, because gevent prints those that a function in its pool raises."""
    try:
        with rights.acting(user):
            return function(*args, **keywords), None
    except Exception as error:  # Raised again in the greenlet that waits.
        return None, error
