"""A job's stdout and stderr: reading by position or from the end, and a bounded size while the job writes on.

The keeper's log writer appends what the job writes to the log's file (`sandbox/log_files.py` says where).
*Position 0 always is the first byte that the job wrote.* When the log exceeds its limit, `JobLog.enforce_limit` returns
its oldest blocks to the file system (a hole: the length stays, the disk space is freed), and readers get one line that
says how many bytes were dropped.

On file systems without holes, the newest part is copied to a file beside, the log is emptied, and the first line of
that file has the position from which to count. Bytes that the job writes in the microseconds before the emptying are
then lost.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from dataclasses import dataclass
from typing import final

from prouter.agent.sandbox import rights, syscalls
from prouter.agent.sandbox.paths import translated
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.errors import Forbidden, InvalidRequest
from prouter.keeper.log_gaps import LOG_FILES, TIMES, first_data, gap_marker
from prouter.keeper.log_times import STEP, entries, position_since

__all__ = ["JobLog", "LogChunk"]

_BLOCK = 1 << 16
_PAGE = 4096  # holes are made of whole file system blocks
_LINE_SEARCH = 8192  # bytes of the kept part that are searched for the start of a line
_NO_HOLES = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL)
_TRUNCATED = b"[prouter: the job truncated its log]\n"


@dataclass(frozen=True, slots=True)
class LogChunk:
    """A piece of a log.

    Attributes:
        start: the requested position.
        end: the position to continue from. ``end - start`` is ``len(data)``, except for a marker line, which has no
            positions.
        data: empty at the end of the log.
    """

    start: int
    end: int
    data: bytes


@final
class JobLog:
    """One of a job's two logs. Share one object among all its followers: they read each block from disk once.

    Safe to use from several threads. It holds a descriptor from the first use until `close`, or until `rest` if the
    log can be reopened.

    Args:
        sandbox: the job's sandbox.
        name: ``stdout`` or ``stderr``.
        holes: False for the method of file systems without holes from the start.

    Raises:
        InvalidRequest: no such log.
    """

    def __init__(self, sandbox: Sandbox, name: str, *, holes: bool = True) -> None:
        names = sorted(LOG_FILES.values())
        if name not in names:
            raise InvalidRequest(f"Invalid request: there is no log '{name}', only {' and '.join(names)}")
        self.name = name
        self._file = f".pagent.{name}".encode()
        self._files = sandbox.logs
        self._kept_file = f"{self._files.path(name).name}.kept"
        self._holes = holes
        self._lock = threading.RLock()
        self._fd = self._kept_fd = -1
        self._kept = (0, 0, 0)  # positions [first, end) of the copied part, and where it begins in its file
        self._last = LogChunk(0, 0, b"")

    def __enter__(self) -> JobLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, fd: int) -> None:
        """Use this descriptor of a log that was just created; `close` and `rest` close it."""
        with self._lock:
            self._fd = fd

    def close(self) -> None:
        """Close the descriptors; the next use reopens them."""
        with self._lock:
            for fd in (self._fd, self._kept_fd):
                if fd >= 0:
                    os.close(fd)
            self._fd = self._kept_fd = -1
            self._last = LogChunk(0, 0, b"")

    def rest(self) -> None:
        """Close the descriptors as `close` does, unless the log has lost its name and could not be reopened."""
        with self._lock:
            if self._fd < 0 or self._files.leads_to(self.name, self._fd):
                self.close()

    @rights.as_agent
    def fileno(self) -> int:
        """Return the log's descriptor, for `prouter.agent.logs.log_watch.LogWatcher.watch`.

        Raises:
            NotFound: the job has no log (yet).
            Forbidden: a log that an older version left in the sandbox is no longer a log.
        """
        with self._lock, translated(self._file):
            if self._fd < 0:
                self._fd = self._files.open(self.name)
                self._open_kept()
            return self._fd

    def first(self) -> int:
        """Return the position of the oldest kept byte."""
        with self._lock, translated(self._file):
            fd = self.fileno()
            base = self._kept[1]
            return self._kept[0] if base else first_data(fd)

    def end(self) -> int:
        """Return the position after the newest byte, which is how much the job has written."""
        with self._lock, translated(self._file):
            return os.fstat(self.fileno()).st_size + self._kept[1]

    def read(self, offset: int, n: int = _BLOCK) -> LogChunk:
        """Read at most `n` bytes at `offset`: the marker line if they were dropped, nothing at the log's end.

        An offset beyond the end means that the job truncated its own log: a line says so, and reading restarts at 0. So
        check offsets of requests against `end` first.

        Raises:
            NotFound: there is no log (yet).
        """
        with self._lock, translated(self._file):
            last = self._last
            if last.start == offset and 0 < len(last.data) <= n:
                return last
            chunk = self._read(offset, n)
            self._last = chunk
            return chunk

    def _read(self, offset: int, n: int) -> LogChunk:
        first, end = self.first(), self.end()
        if offset > end:
            return LogChunk(offset, 0, _TRUNCATED)
        while offset >= first:
            data = self._bytes_at(offset, n)
            first = self.first()
            if offset >= first:  # else it was dropped during the read, and may be zeros
                return LogChunk(offset, offset + len(data), data)
        start = self._line_start(first)
        return LogChunk(offset, start, gap_marker(start - offset))

    def _line_start(self, first: int) -> int:
        """Return the first position at or after `first` where a line begins; `first` if none begins nearby."""
        return first + self._bytes_at(first, _LINE_SEARCH).find(b"\n") + 1

    def _bytes_at(self, offset: int, n: int) -> bytes:
        first, base, skip = self._kept
        if offset < base:
            return os.pread(self._kept_fd, min(n, base - offset), offset - first + skip)
        return os.pread(self.fileno(), n, offset - base)

    def tail_offset(self, lines: int) -> int:
        """Return the position from which the last `lines` lines are read; an unfinished last line counts as one.

        It is 0 if fewer are kept because the log was cut: reading then begins with the line that says so.
        """
        with self._lock, translated(self._file):
            first, end = self.first(), self.end()
            position, wanted = end, lines
            while position > first and wanted > 0:
                floor = self._kept[1] if position > self._kept[1] else first
                start = max(floor, position - _BLOCK)
                block = self._bytes_at(start, position - start)
                stop = len(block) - (position == end and block.endswith(b"\n"))
                while wanted > 0 and (stop := block.rfind(b"\n", 0, stop)) >= 0:
                    wanted -= 1
                    if wanted == 0:
                        return start + stop + 1
                position = start
            if lines <= 0:
                return end
            return 0

    @rights.as_agent
    def since_offset(self, moment: float) -> int:
        """Return the position from which on is all that the job wrote at a moment (seconds since 1970) or later.

        It is the beginning of a line, and of what came less than a second earlier; the log's end if nothing came since.
        """
        with self._lock, translated(self._file):
            end, found = self.end(), self._times()
            if not found:  # All came within a second, or an older version wrote the log.
                return 0 if os.fstat(self.fileno()).st_mtime + STEP > moment else end
            position = position_since(found, moment, self._kept[1])
            if position is None:
                return end
            floor = max(self.first(), position - _LINE_SEARCH)
            if floor >= position:
                return position
            line = self._bytes_at(floor, position - floor).rfind(b"\n") + 1
            return floor + line if line or not floor else position

    def _times(self) -> list[tuple[float, int]]:
        try:
            with self._files.directory() as parent:
                name = self._files.path(self.name).name + TIMES
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        except FileNotFoundError:
            return []
        try:
            return entries(fd)
        finally:
            os.close(fd)

    @rights.as_agent
    def enforce_limit(self, limit: int) -> int:
        """Cut the oldest part if more than `limit` bytes are kept; return how many bytes were dropped.

        The log is cut to three quarters of the limit, so that it is cut seldom. The job writes on meanwhile.

        Raises:
            NotFound: there is no log (yet).
            Forbidden, NoSpace: the file system refuses.
        """
        with self._lock, translated(self._file):
            first, end = self.first(), self.end()
            if end - first <= limit:
                return 0
            self._last = LogChunk(0, 0, b"")
            target = end - limit * 3 // 4
            if not (self._holes and not self._kept[1] and self._punch(target)):
                self._copy_and_empty(target)
            return max(0, self.first() - first)

    def _punch(self, target: int) -> bool:
        """Drop whole blocks before `target`; False if the file system has no holes."""
        fd = self._reopened()
        try:
            block = max(_PAGE, os.fstatvfs(fd).f_bsize)
            if target >= block:
                syscalls.punch_hole(fd, 0, target // block * block)
            return True
        except OSError as error:
            if error.errno not in _NO_HOLES:
                raise
            self._holes = False
            return False
        finally:
            os.close(fd)

    def _copy_and_empty(self, target: int) -> None:
        """Copy the kept part to the file beside, then empty the log."""
        log = self._reopened()
        header = b"%d\n" % target
        fresh = f"{self._kept_file}.new"
        try:
            with self._files.directory(make=True) as parent:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(fresh, dir_fd=parent)
                kept = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDWR, 0o600, dir_fd=parent)
                try:
                    end = self._copy(kept, target, header)
                    os.rename(fresh, self._kept_file, src_dir_fd=parent, dst_dir_fd=parent)
                    end = self._copy(kept, end, b"")
                    os.ftruncate(log, 0)
                except BaseException:
                    os.close(kept)
                    raise
        finally:
            os.close(log)
        if self._kept_fd >= 0:
            os.close(self._kept_fd)
        self._kept_fd, self._kept = kept, (target, end, len(header))

    def _copy(self, to: int, position: int, header: bytes) -> int:
        """Append the header and everything from `position` on; return the position after it."""
        data = header
        while data:
            view = memoryview(data)
            while view:
                view = view[os.write(to, view) :]
            data = self._bytes_at(position, _BLOCK)
            position += len(data)
        return position

    def _reopened(self) -> int:
        """Open the same file for writing, never another one that has its name by now."""
        fd = self.fileno()
        if not self._files.made_here(self.name) and os.fstat(fd).st_nlink > 1:
            raise Forbidden(f"the job's {self.name} has several names: it is not cut")
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_CLOEXEC)

    def _open_kept(self) -> None:
        """Continue with the file that an earlier `_copy_and_empty` left, after a restart of the agent."""
        try:
            with self._files.directory() as parent:
                fd = os.open(self._kept_file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        except FileNotFoundError:
            return
        header = os.pread(fd, 32, 0).split(b"\n", 1)[0]
        if not header.isdigit():
            os.close(fd)  # not the agent's file but the job's
            return
        skip = len(header) + 1
        self._kept_fd, self._kept = fd, (int(header), int(header) + os.fstat(fd).st_size - skip, skip)
