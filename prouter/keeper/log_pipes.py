"""What jobs write: a pipe for each of their outputs, and the log writer that empties the pipes into log files.

A job gets a pipe and not its log file, because a program that opens ``/dev/stdout`` opens what is behind it anew: a
file would be truncated, and written from its beginning. A pipe has neither length nor position.

The keeper looks at a pipe only until something is in it. Then the pipe is the log writer's, until the job has ended
and the writer says that all of it is stored. Both hold the pipe, so no end of a single process breaks it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import stat
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from prouter.keeper.log_writer import ADD, DONE, FAILED, FINISH, HEAD, LONGEST, TROUBLE, become_writer

__all__ = ["LogPipes", "Output"]

_WRITE_ONLY = 0o200
"""Mode of a pipe: who opens ``/dev/stdout`` for reading would take bytes from its log."""
_PATIENCE = 5.0
"""Seconds that a log writer stuck in a write may delay the end of a job."""
_LOOK = 0.01
_RESTART = 1.0
"""Seconds between starts of a log writer, when it does not live or cannot be made."""


class Output(NamedTuple):
    """One output of a job.

    Attributes:
        path: of its log; or a descriptor, to whose end it is appended.
        copy: where a copy of the log's beginning goes, or None.
    """

    path: str | int
    copy: str | None


class _Pipe:
    """One output's pipe: looked at by the keeper, then moved by the writer, then over."""

    def __init__(self, number: int, job: str, reading: int, log: int, copy: int | None) -> None:
        self.number = number
        self.job = job
        self.reading = reading
        self.log = log
        self.copy = copy
        self.watched = False
        self.handed = False
        self.over = False

    @property
    def holds(self) -> bool:
        """Whether anything is in it."""
        return bool(_events(self.reading) & select.POLLIN)

    def close(self) -> None:
        for fd in (self.reading, self.log, self.copy):
            if fd is not None:
                os.close(fd)
        self.copy = None


class _Ending(NamedTuple):
    """A job whose processes are gone and whose logs are not complete yet."""

    then: Callable[[], None]
    give_up_at: float


class LogPipes:
    """The pipes of all jobs.

    Args:
        poller: gets the descriptors registered; the caller hands readiness to `ready`.
        log: takes a level's name and an event line.
        lock: a file that each log writer holds a lock on, so that its keeper's successor can wait for it.
    """

    def __init__(self, poller: select.epoll, log: Callable[[str, str], None], lock: str) -> None:
        self._poller = poller
        self._log = log
        self._lock = lock
        self._numbers = 0
        self._jobs: dict[str, list[_Pipe]] = {}
        self._by_number: dict[int, _Pipe] = {}
        self._watched: dict[int, _Pipe] = {}
        self._endings: dict[str, _Ending] = {}
        self._writer: int | None = None
        self._control: socket.socket | None = None
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._started_at = float("-inf")
        self._start_at: float | None = None

    @property
    def writer(self) -> int | None:
        """Pid of the log writer, a child of the keeper that is no job's; None while there is none."""
        return self._writer

    def open(self, job: str, outputs: list[Output]) -> list[int]:
        """Make a job's pipes.

        Returns:
            The ends to write to, in order, for the caller to close once the job has them.

        Raises:
            OSError: a log cannot be opened, or no pipe made; nothing is left of it. `filename` is the log's.
        """
        pipes: list[_Pipe] = []
        writing: list[int] = []
        try:
            for output in outputs:
                pipe, end = self._open(job, output)
                pipes.append(pipe)
                writing.append(end)
        except OSError:
            for pipe in pipes:
                pipe.close()
            for end in writing:
                os.close(end)
            raise
        self._jobs[job] = pipes
        for pipe in pipes:
            self._by_number[pipe.number] = pipe
        return writing

    def _open(self, job: str, output: Output) -> tuple[_Pipe, int]:
        log = _open_log(output.path) if isinstance(output.path, str) else os.dup(output.path)
        try:
            reading, writing = os.pipe2(os.O_CLOEXEC)
        except OSError:
            os.close(log)
            raise
        os.set_blocking(reading, False)
        os.fchmod(reading, _WRITE_ONLY)
        copy = _open_copy(output.copy) if output.copy is not None else None
        self._numbers += 1
        return _Pipe(self._numbers, job, reading, log, copy), writing

    def await_predecessor(self, patience: float) -> None:
        """Wait, at most so many seconds, until the log writer of a killed keeper has stored all that its jobs wrote.

        Its jobs must have ended.
        """
        deadline = time.monotonic() + patience
        fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while time.monotonic() < deadline:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    time.sleep(_LOOK)
                else:
                    return
            self._log("warning", "event=log_writer_left reason='it does not end'")
        finally:
            os.close(fd)

    def watch(self, job: str) -> None:
        """Begin to look at a job's pipes, once the job holds the only ends to write to."""
        for pipe in self._jobs.get(job, ()):
            self._poller.register(pipe.reading, select.EPOLLIN)
            self._watched[pipe.reading] = pipe
            pipe.watched = True

    def ready(self, fd: int, events: int) -> bool:
        """Take note of a ready descriptor, if it is one of these."""
        if self._control is not None and fd == self._control.fileno():
            if events & select.EPOLLOUT:
                self._flush()
            if events & ~select.EPOLLOUT:
                self._receive()
            return True
        pipe = self._watched.get(fd)
        if pipe is None:
            return False
        if events & select.EPOLLIN:
            self._hand_over(pipe)
        elif _events(fd) == select.POLLHUP:  # Now: before, another pipe may have had this number.
            self._unwatch(pipe)
            pipe.over = True
        return True

    def finish(self, job: str, then: Callable[[], None]) -> None:
        """Call `then` once all that a job's processes have written is in its logs; they must be gone."""
        pipes = self._jobs.get(job, [])
        for pipe in pipes:
            if not pipe.over and not pipe.handed and not pipe.holds:
                pipe.over = True
            if not pipe.over:
                self._hand_over(pipe)
                self._send(FINISH, pipe, [])
        self._endings[job] = _Ending(then, time.monotonic() + _PATIENCE)
        self._settle(job)

    def due(self) -> float | None:
        """When `tick` is to be called next (monotonic seconds), or None."""
        due = [ending.give_up_at for ending in self._endings.values()]
        if self._start_at is not None:
            due.append(self._start_at)
        return min(due, default=None)

    def tick(self) -> None:
        """Start a writer that is due, and give up what it does not store in time."""
        now = time.monotonic()
        if self._start_at is not None and self._start_at <= now:
            self._flush()
        for job in [job for job, ending in self._endings.items() if ending.give_up_at <= now]:
            self._log("error", f"event=log_not_complete job={job} reason='the log writer does not answer'")
            for pipe in self._jobs[job]:
                pipe.over = True
            self._settle(job)

    def writer_ended(self) -> None:
        """The writer's process has ended, and was reaped: go on with another one."""
        if self._control is not None:
            self._receive()  # What it has said before.
        self._log("error", f"event=log_writer_lost pid={self._writer}")
        self._drop_writer()
        for pipe in list(self._by_number.values()):
            if pipe.handed and not pipe.over:
                pipe.handed = False
                self._hand_over(pipe)
                if pipe.job in self._endings:
                    self._send(FINISH, pipe, [])

    def close(self) -> None:
        """End the writer; the jobs have ended, and nobody wants their logs."""
        writer = self._writer
        if writer is not None:
            os.kill(writer, signal.SIGKILL)
            os.waitpid(writer, 0)
        self._drop_writer()

    def _drop_writer(self) -> None:
        if self._control is not None:
            self._poller.unregister(self._control.fileno())
            self._control.close()
        self._control = self._writer = None
        while self._unsent:
            _close_copy(self._unsent.popleft()[1])

    def _hand_over(self, pipe: _Pipe) -> None:
        if pipe.handed:
            return
        self._unwatch(pipe)
        pipe.handed = True
        copy, pipe.copy = pipe.copy, None
        self._send(ADD, pipe, [pipe.reading, pipe.log, *([copy] if copy is not None else [])])

    def _unwatch(self, pipe: _Pipe) -> None:
        if pipe.watched:
            pipe.watched = False
            del self._watched[pipe.reading]
            self._poller.unregister(pipe.reading)

    def _settle(self, job: str) -> None:
        """End a job's pipes when all of them are over."""
        pipes = self._jobs.get(job, [])
        if job not in self._endings or not all(pipe.over for pipe in pipes):
            return
        for pipe in pipes:
            self._unwatch(pipe)
            pipe.close()
            del self._by_number[pipe.number]
        self._jobs.pop(job, None)
        self._endings.pop(job).then()

    # Talking to the writer.

    def _start_writer(self) -> socket.socket | None:
        """A new writer's connection; None when there is to be none yet."""
        now = time.monotonic()
        self._start_at = self._started_at + _RESTART
        if now < self._start_at:
            return None
        self._started_at, self._start_at = now, None
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            try:
                pid = os.fork()
            except OSError as error:
                ours.close()
                self._start_at = now + _RESTART
                self._log("error", f"event=log_writer_not_started error={error.strerror!r}")
                return None
            if pid == 0:
                become_writer(its, self._lock)
        ours.setblocking(False)
        self._writer, self._control = pid, ours
        self._poller.register(ours.fileno(), select.EPOLLIN)
        return ours

    def _send(self, operation: int, pipe: _Pipe, fds: list[int]) -> None:
        self._unsent.append((HEAD.pack(operation, pipe.number), fds))
        if len(self._unsent) == 1 or self._control is None:
            self._flush()

    def _flush(self) -> None:
        control = self._control or self._start_writer()
        if control is None:
            return
        while self._unsent:
            message, fds = self._unsent[0]
            try:
                socket.send_fds(control, [message], fds)
            except OSError as error:
                if not isinstance(error, BlockingIOError):
                    return  # It is gone; the end of its process tells.
                break
            self._unsent.popleft()
            _close_copy(fds)
        self._poller.modify(control.fileno(), select.EPOLLIN | (select.EPOLLOUT if self._unsent else 0))

    def _receive(self) -> None:
        assert self._control is not None
        while True:
            try:
                data = self._control.recv(LONGEST)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
            if not data:
                # Its process has ended or is about to, which is told by itself.
                self._poller.modify(self._control.fileno(), 0)
                return
            operation, number = HEAD.unpack_from(data)
            if operation == FAILED:
                self._log("error", f"event=log_writer_failed traceback={data[HEAD.size :].decode()!r}")
            pipe = self._by_number.get(number)
            if pipe is not None:
                self._told(operation, pipe, int.from_bytes(data[HEAD.size :], "little"))

    def _told(self, operation: int, pipe: _Pipe, amount: int) -> None:
        if operation == TROUBLE:
            reason = f"reason={os.strerror(amount)!r}"
            self._log("error", f"event=log_not_written job={pipe.job} {reason} path={_name(pipe.log)!r}")
        elif operation == DONE:
            pipe.over = True
            if amount:
                self._log("error", f"event=log_bytes_lost job={pipe.job} bytes={amount} path={_name(pipe.log)!r}")
            self._settle(pipe.job)


def _close_copy(fds: list[int]) -> None:
    """Close a copy that was sent: it is the writer's alone."""
    for fd in fds[2:]:
        os.close(fd)


def _events(fd: int) -> int:
    """What a descriptor is ready for now."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return dict(poll.poll(0)).get(fd, 0)


def _name(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


def _open_log(path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    fd = os.open(path, flags, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, "it is not a regular file", path)
    return fd


def _open_copy(path: str) -> int | None:
    """A new file for the copy; None where there can be none, as the job can do without."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileExistsError:
        with contextlib.suppress(OSError):
            os.unlink(path)  # Uploaded before the start; the name is the agent's.
            return os.open(path, flags, 0o600)
    except OSError:
        pass
    return None
