"""The outputs of jobs: a pipe for each, and the log writer that moves their content into log files.

A job gets a pipe instead of its log file, because a program that opens ``/dev/stdout`` opens the file behind it anew:
it would truncate the log, and write from its beginning. A pipe has neither length nor position.

The keeper watches a pipe only until it has content. Then the log writer gets the pipe, until the job has ended and the
writer tells that all of it is stored. Both processes hold the pipe open, so the end of one of them does not break it.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from prouter.keeper.log_files import open_copy, open_log
from prouter.keeper.log_writer import ADD, DONE, FAILED, FINISH, HEAD, LONGEST, TROUBLE, become_writer

__all__ = ["LogPipes", "Output"]

_WRITE_ONLY = 0o200
"""Mode of a pipe: write only, because a reader of ``/dev/stdout`` would take bytes from the log."""
_PATIENCE = 5.0
"""Seconds that a log writer stuck in a write may delay the end of a job."""
_LOOK = 0.01
_RESTART = 1.0
"""Seconds between starts of a log writer, when it does not live or cannot be made."""


class Output(NamedTuple):
    """One output of a job.

    Attributes:
        path: of its log; or a descriptor, to whose end it is appended.
        copy: path of the copy of the log's beginning, or None.
    """

    path: str | int
    copy: str | None


class _Pipe:
    """The pipe of one output: the keeper watches it, then the writer moves its content, then it is over."""

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
        """Whether it has content."""
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
        poller: watches the descriptors; the caller tells `ready` which are ready.
        log: takes the name of a level and an event line.
        lock: a file that each log writer locks, so that the next keeper can wait for it.
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
        """Pid of the log writer, a child of the keeper; None while there is none."""
        return self._writer

    def open(self, job: str, outputs: list[Output], owner: int | None = None) -> list[int]:
        """Make a job's pipes, and watch them.

        Args:
            owner: uid of the job's user, if that is not this process's own.

        Returns:
            The writing ends, in order; the caller closes them once the job has them.

        Raises:
            OSError: a log cannot be opened, or no pipe can be made; nothing is left open. `filename` is the log's.
        """
        pipes: list[_Pipe] = []
        writing: list[int] = []
        try:
            for output in outputs:
                pipe, end = self._open(job, output, owner)
                pipes.append(pipe)
                writing.append(end)
            for pipe in pipes:
                self._poller.register(pipe.reading, select.EPOLLIN)
                self._watched[pipe.reading] = pipe
                pipe.watched = True
        except OSError:
            for pipe in pipes:
                self._unwatch(pipe)
                pipe.close()
            for end in writing:
                os.close(end)
            raise
        self._jobs[job] = pipes
        for pipe in pipes:
            self._by_number[pipe.number] = pipe
        return writing

    def _open(self, job: str, output: Output, owner: int | None) -> tuple[_Pipe, int]:
        log = open_log(output.path) if isinstance(output.path, str) else os.dup(output.path)
        made = [log]
        try:
            reading, writing = os.pipe2(os.O_CLOEXEC)
            made += (reading, writing)
            os.set_blocking(reading, False)
            os.fchmod(reading, _WRITE_ONLY)
            copy = open_copy(output.copy) if output.copy is not None else None
            if copy is not None:
                made.append(copy)
            if owner is not None:
                for fd in (reading, copy):
                    if fd is not None:
                        os.fchown(fd, owner, -1)
        except OSError:
            for fd in made:
                os.close(fd)
            raise
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

    def ready(self, fd: int, events: int) -> bool:
        """Handle a ready descriptor; return False if it is none of these."""
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
        elif _events(fd) == select.POLLHUP:  # Asked now, because another pipe had this number before.
            self._unwatch(pipe)
            pipe.over = True
        return True

    def finish(self, job: str, then: Callable[[], None]) -> None:
        """Call `then` once a job's logs hold all that its processes have written. No process may be left."""
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
        """When `tick` must be called next (monotonic seconds), or None."""
        due = [ending.give_up_at for ending in self._endings.values()]
        if self._start_at is not None:
            due.append(self._start_at)
        return min(due, default=None)

    def tick(self) -> None:
        """Start a writer that is due, and give up output that it does not store in time."""
        now = time.monotonic()
        if self._start_at is not None and self._start_at <= now:
            self._flush()
        for job in [job for job, ending in self._endings.items() if ending.give_up_at <= now]:
            self._log("error", f"event=log_not_complete job={job} reason='the log writer does not answer'")
            for pipe in self._jobs[job]:
                pipe.over = True
            self._settle(job)

    def writer_ended(self) -> None:
        """Go on with another writer, because the writer's process has ended and was reaped."""
        if self._control is not None:
            self._receive()  # Messages that it sent before its end.
        self._log("error", f"event=log_writer_lost pid={self._writer}")
        self._drop_writer()
        for pipe in list(self._by_number.values()):
            if pipe.handed and not pipe.over:
                pipe.handed = False
                self._hand_over(pipe)
                if pipe.job in self._endings:
                    self._send(FINISH, pipe, [])

    def close(self) -> None:
        """End the writer. The jobs have ended, and their logs are about to be removed."""
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
        """Start a writer and return the connection to it; None if it is too early for a new one."""
        now = time.monotonic()
        self._start_at = self._started_at + _RESTART
        if now < self._start_at:
            return None
        self._started_at, self._start_at = now, None
        try:
            self._writer, self._control = self._fork_writer()
        except OSError as error:
            self._start_at = now + _RESTART
            self._log("error", f"event=log_writer_not_started error={error.strerror!r}")
        return self._control

    def _fork_writer(self) -> tuple[int, socket.socket]:
        """Fork a writer; return its pid and the connection to it, which is watched. Raises `OSError`."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            try:
                ours.setblocking(False)
                self._poller.register(ours.fileno(), select.EPOLLIN)
                pid = os.fork()
            except OSError:
                ours.close()
                raise
            if pid == 0:
                become_writer(its, self._lock)
        return pid, ours

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
                    return  # The writer is gone; SIGCHLD tells.
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
                # Its process has ended or is about to; SIGCHLD tells.
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
    """Close the descriptor of a copy that the writer has now."""
    for fd in fds[2:]:
        os.close(fd)


def _events(fd: int) -> int:
    """The events for which a descriptor is ready now."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return dict(poll.poll(0)).get(fd, 0)


def _name(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")
