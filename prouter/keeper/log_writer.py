"""The log writer: a child of the keeper that moves what jobs write from their pipes into their log files.

It is a process of its own, because the keeper must never wait for a disk. The keeper forks it when a job first writes.
It sleeps while no job writes, and has no descriptor that the keeper has not, so a killed writer is replaced. If the
keeper is killed, the writer goes on until the jobs have closed their pipes. So jobs neither lose output nor get
SIGPIPE.

Bytes go from pipe to file inside the kernel (splice(2)), or with read(2) and write(2) if the file system cannot do
that. While the disk is full, the writer reads nothing, and the job waits in its write. Only a job that has ended loses
output: what cannot be stored within `_END_PATIENCE` seconds.

Each message is a datagram: an operation (one byte), the number of a stream (u64), and more by operation.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import termios
import time
from typing import NoReturn

from prouter.keeper.log_gaps import COPIED, COPY_END
from prouter.keeper.log_times import LogTimes

__all__ = ["ADD", "DONE", "FAILED", "FINISH", "HEAD", "LONGEST", "TROUBLE", "become_writer"]

HEAD = struct.Struct("<BQ")
ADD = 1
"""To the writer: a new stream, with descriptors of the pipe, the log, and perhaps the copy of the log's beginning."""
FINISH = 2
"""To the writer: the job has ended. The writer moves what the pipe holds now, and sends `DONE`."""
DONE = 3
"""From the writer: the stream is over; with the number of bytes that could not be stored (u64)."""
TROUBLE = 4
"""From the writer: the log cannot be written; with the number of the error (u64). The writer tries again."""

FAILED = 5
"""From the writer, which is about to end: an unexpected error, with its traceback."""
LONGEST = 16 << 10
"""Most bytes of a message."""

_AMOUNT = struct.Struct("<Q")
_COUNT = struct.Struct("i")
_F_SETPIPE_SZ = 1031
_PIPE = 64 << 10
_LARGE_PIPE = 256 << 10
_PIECE = 1 << 20
_PAUSE_MS = 1
"""Milliseconds to wait after a pass that moved little, so that many small writes of a job cost few passes."""
_LITTLE = 16 << 10
_RETRY = 0.25
_END_PATIENCE = 2.0
"""Seconds for which a full disk may delay the end of a job."""


class _Stream:
    """One pipe and its log."""

    def __init__(self, number: int, pipe: int, log: int, copy: int | None) -> None:
        self.number = number
        self.pipe = pipe
        self.log = log
        self.copy = copy
        self._times = LogTimes(log)
        self.left: int | None = None
        """Bytes that are left to move, once the job has ended."""
        self.give_up_at = 0.0
        self.retry_at = 0.0
        self._splices = True
        self._grown = False
        self._unwritten = b""

    def waiting(self) -> int:
        """Bytes that can be moved now."""
        there: int = _COUNT.unpack(fcntl.ioctl(self.pipe, termios.FIONREAD, bytes(_COUNT.size)))[0]
        return there + len(self._unwritten)

    def move(self, most: int) -> int:
        """Move at most so many bytes, of which at least one must be there; return how many.

        Raises:
            OSError: the log cannot be written; no byte is lost.
        """
        # Always append: on file systems without holes the agent empties the log now and then.
        at = os.lseek(self.log, 0, os.SEEK_END)
        moved = self._splice(most) if self._splices else self._write(most)
        self._times.note(at)
        if moved >= _PIPE and not self._grown:
            self._grown = True
            with contextlib.suppress(
                OSError
            ):  # The user may have no pages for pipes left (pipe(7)). That is slower, and works.
                fcntl.fcntl(self.pipe, _F_SETPIPE_SZ, _LARGE_PIPE)
        if self.copy is not None:
            self._show(at, moved)
        return moved

    def _splice(self, most: int) -> int:
        try:
            return os.splice(self.pipe, self.log, most)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            self._splices = False
            return self._write(most)

    def _write(self, most: int) -> int:
        if not self._unwritten:
            self._unwritten = os.read(self.pipe, min(most, _PIPE))
        written = os.write(self.log, self._unwritten)
        self._unwritten = self._unwritten[written:]
        return written

    def _show(self, at: int, moved: int) -> None:
        """Append the moved bytes to the copy, as long as they belong to the log's beginning."""
        assert self.copy is not None
        try:
            if at < COPIED:
                os.write(self.copy, os.pread(self.log, min(moved, COPIED - at), at))
            if at + moved > COPIED:
                os.write(self.copy, COPY_END)
        except OSError:
            at = COPIED + 1  # A copy that cannot be written is given up; the log goes on.
        if at + moved > COPIED:
            os.close(self.copy)
            self.copy = None

    def close(self) -> None:
        for fd in (self.pipe, self.log, self.copy):
            if fd is not None:
                os.close(fd)


class _Writer:
    """The writer's event loop.

    Args:
        control: connected to the keeper.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._poller = select.epoll()
        self._poller.register(control.fileno(), select.EPOLLIN)
        self._pause = select.poll()
        self._pause.register(control.fileno(), select.POLLIN)
        self._streams: dict[int, _Stream] = {}
        self._pipes: dict[int, _Stream] = {}
        self._stuck: set[_Stream] = set()
        self._keeper_lives = True

    def run(self) -> None:
        """Move output until the keeper is gone and no pipe is open any more."""
        control = self._control.fileno()
        while self._keeper_lives or self._streams:
            ready = dict(self._poller.poll(self._timeout()))
            told = ready.pop(control, 0)
            moved = [self._serve(self._pipes[fd], events) for fd, events in ready.items()]
            self._retry()
            if told:  # Last, because a new descriptor may get the number of one that was closed in this pass.
                self._receive()
            elif moved and max(moved) < _LITTLE:
                self._pause.poll(_PAUSE_MS)

    def _timeout(self) -> float | None:
        if not self._stuck:
            return None
        return max(0.0, min(stream.retry_at for stream in self._stuck) - time.monotonic())

    def _receive(self) -> None:
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._control, 64, 3)
            except BlockingIOError:
                return
            except ConnectionError:
                data, fds = b"", []
            if not data:
                self._keeper_lives = False
                self._poller.unregister(self._control.fileno())
                self._pause.unregister(self._control.fileno())
                return
            operation, number = HEAD.unpack(data)
            if operation == ADD:
                self._add(_Stream(number, fds[0], fds[1], fds[2] if len(fds) > 2 else None))
            elif number in self._streams:
                self._finish(self._streams[number])
            else:
                self._say(DONE, number, 0)  # The stream was over before.

    def _add(self, stream: _Stream) -> None:
        self._streams[stream.number] = self._pipes[stream.pipe] = stream
        self._poller.register(stream.pipe, select.EPOLLIN)

    def _finish(self, stream: _Stream) -> None:
        stream.left = stream.waiting()
        stream.give_up_at = time.monotonic() + _END_PATIENCE
        self._drain(stream)

    def _serve(self, stream: _Stream, events: int) -> int:
        """Move what a pipe holds, or end its stream; return the number of moved bytes."""
        there = stream.waiting()
        if stream.left is not None:
            self._drain(stream)
        elif there:
            return self._move(stream, min(there, _PIECE))
        elif not events & select.EPOLLIN:
            self._end(stream, 0)  # No process has the pipe open for writing any more.
        return 0

    def _drain(self, stream: _Stream) -> None:
        """Move the rest of a stream whose job has ended."""
        assert stream.left is not None
        stream.left = min(stream.left, stream.waiting())
        while stream.left > 0:
            moved = self._move(stream, min(stream.left, _PIECE))
            if stream in self._stuck:
                break
            stream.left -= moved or stream.left  # Moved nothing: another process has read from the pipe.
        if stream.left <= 0 or time.monotonic() > stream.give_up_at:
            self._end(stream, stream.left)

    def _move(self, stream: _Stream, most: int) -> int:
        try:
            moved = stream.move(most)
        except BlockingIOError:
            return 0  # Another process has read from the pipe.
        except OSError as error:
            if stream not in self._stuck:
                self._stuck.add(stream)
                self._poller.unregister(stream.pipe)
                self._say(TROUBLE, stream.number, error.errno or 0)
            stream.retry_at = time.monotonic() + _RETRY
            return 0
        if stream in self._stuck:
            self._stuck.discard(stream)
            self._poller.register(stream.pipe, select.EPOLLIN)
        return moved

    def _retry(self) -> None:
        now = time.monotonic()
        for stream in list(self._stuck):
            if stream.retry_at <= now:
                self._serve(stream, select.EPOLLIN)

    def _end(self, stream: _Stream, lost: int) -> None:
        del self._streams[stream.number]
        del self._pipes[stream.pipe]
        if stream in self._stuck:
            self._stuck.discard(stream)
        else:
            self._poller.unregister(stream.pipe)
        stream.close()
        self._say(DONE, stream.number, lost)

    def _say(self, operation: int, number: int, amount: int) -> None:
        if not self._keeper_lives:
            return
        # Blocks while the keeper is busy. If it is gone, the next receive notices.
        self._control.setblocking(True)
        with contextlib.suppress(ConnectionError):
            self._control.send(HEAD.pack(operation, number) + _AMOUNT.pack(amount))
        self._control.setblocking(False)


def become_writer(control: socket.socket, lock: str) -> NoReturn:
    """In a forked child of the keeper: run as its log writer, and hold the lock until the end."""
    try:
        signal.set_wakeup_fd(-1)
        # The writer ends after all jobs. systemd sends SIGTERM to every process, and means the jobs.
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        null = os.open("/dev/null", os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        kept = control.fileno()
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) != kept:
                with contextlib.suppress(
                    OSError
                ):  # The descriptor with which the directory was listed is closed already.
                    os.close(int(name))
        fcntl.flock(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), fcntl.LOCK_SH)
        control.setblocking(False)
        _Writer(control).run()
    except Exception as error:  # The edge of the process: the keeper logs the error and starts another writer.
        try:
            import traceback  # Late: it takes memory and is hardly ever needed.

            told = traceback.format_exc()
        except OSError:  # No file can be read now.
            told = repr(error)
        text = told.encode("utf-8", "backslashreplace")
        control.send(HEAD.pack(FAILED, 0) + text[-(LONGEST - HEAD.size) :])
    finally:
        os._exit(0)
