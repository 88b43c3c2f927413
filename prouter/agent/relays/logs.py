"""Streams of a job's stdout or stderr: what is there now, or all of it until the job has ended (``follow``).

Followers sleep until inotify(7) or the job manager wakes them. All followers of a log share one watch, and the block of
the log that was read last. The position of a byte is the preface's offset plus the bytes before it in the stream. If
the log was cut under a slow reader, that would not hold; the stream is then reset with ``overloaded``. A reader that
opens it again at its position first gets the line that tells how much was dropped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from gevent import get_hub
from gevent.event import Event

from prouter.agent.logs.job_log import JobLog, LogChunk
from prouter.agent.logs.log_watch import LogWatcher
from prouter.agent.relays.transfers import Transfer
from prouter.errors import InvalidRequest, NotFound, RangeNotSatisfiable
from prouter.jobs import JobRecord
from prouter.transport.stream_io import StreamReset

__all__ = ["LogNews", "LogStreams"]

Value = TypeVar("Value")

_CUT = "the log was cut before it was read"

_POLL = 0.25
"""Seconds between checks of a log that the kernel cannot watch (limits of fs.inotify)."""


class LogNews:
    """Wakes followers of logs when the log grows or the job changes.

    Args:
        remote: whether other machines write the logs, which inotify(7) does not tell: followers look by themselves.
    """

    def __init__(self, *, remote: bool = False) -> None:
        self.remote = remote
        self._watcher: LogWatcher | None = None
        self._io: Any = None
        self._by_job: dict[str, set[Event]] = {}

    def job_changed(self, record: JobRecord) -> None:
        """Wake the followers of a job's logs."""
        for news in self._by_job.get(record.uid, ()):
            news.set()

    @contextlib.contextmanager
    def of_job(self, uid: str) -> Iterator[Event]:
        """An event that is set whenever the job changes."""
        news = Event()
        self._by_job.setdefault(uid, set()).add(news)
        try:
            yield news
        finally:
            followers = self._by_job[uid]
            followers.discard(news)
            if not followers:
                del self._by_job[uid]

    def watch(self, fd: int, news: Event) -> int | None:
        """Have `news` set whenever the file is written to; None if the kernel cannot watch it."""
        if self.remote:
            return None
        if self._watcher is None:
            try:
                self._watcher = watcher = LogWatcher()
            except OSError:
                return None
            self._io = get_hub().loop.io(watcher.fileno(), 1)
            self._io.start(watcher.dispatch)
        return self._watcher.watch(fd, news.set)

    def unwatch(self, token: int | None) -> None:
        """End a watch."""
        if token is not None and self._watcher is not None:
            self._watcher.unwatch(token)

    def close(self) -> None:
        """End all watches."""
        if self._watcher is not None:
            self._io.stop()
            self._io.close()
            self._watcher.close()
            self._watcher = None


class LogStreams:
    """Carries out streams of kind ``log``.

    Args:
        news: wakes followers.
    """

    def __init__(self, news: LogNews) -> None:
        self._news = news

    def send(self, transfer: Transfer) -> None:
        """``log``: send a log from an offset on, its last lines, or what came since a time (ms since 1970).

        With ``follow`` until the job has ended.
        """
        log = transfer.jobs.log(transfer.uid, transfer.text("name", "stdout"))
        offset, tail, follow = transfer.number("offset"), transfer.number("tail"), transfer.flag("follow")
        since = transfer.number("since")
        if offset is not None and (tail is not None or since is not None):
            raise InvalidRequest("Invalid request: offset excludes tail and since")
        end = self._call(transfer, _end, log)
        if offset is not None and offset > end:
            raise RangeNotSatisfiable(f"offset {offset} is beyond the end of the log, {end} bytes")
        if offset is None:
            offset = transfer.run(_begin, log, tail, since) if end else 0
        first = self._call(transfer, log.read, offset) if end else LogChunk(offset, offset, b"")
        transfer.say(offset=first.end - len(first.data), size=end)
        transfer.sent = True
        transfer.io.write_all(first.data)
        if follow:
            self._follow(transfer, log, first.end)
        else:
            self._copy(transfer, log, first.end, end)
        transfer.io.close()

    def _call(self, transfer: Transfer, function: Callable[..., Value], *args: Any) -> Value:
        """Use a log: in a thread if it is on a network file system, which may be slow or hang; else right here."""
        return transfer.run(function, *args) if self._news.remote else function(*args)

    def _follow(self, transfer: Transfer, log: JobLog, position: int) -> None:
        with self._news.of_job(transfer.uid) as news:
            transfer.io.alarm = news
            token: int | None = None
            watched = False
            try:
                while not transfer.io.stream.closed:
                    news.clear()
                    ended = _ended(transfer)
                    if not watched:
                        watched, token = self._watch(transfer, log, news)
                    moved = self._copy(transfer, log, position, None)
                    if moved == position and ended:
                        return
                    if moved == position:
                        news.wait(_POLL if watched and token is None else None)
                    position = moved
            finally:
                self._news.unwatch(token)

    def _watch(self, transfer: Transfer, log: JobLog, news: Event) -> tuple[bool, int | None]:
        """Whether the log exists, and the watch on it if the kernel has one."""
        try:
            return True, self._news.watch(self._call(transfer, log.fileno), news)
        except NotFound:
            return False, None

    def _copy(self, transfer: Transfer, log: JobLog, position: int, stop: int | None) -> int:
        """Send the log up to `stop`; return the position that was reached."""
        while stop is None or position < stop:
            try:
                chunk = self._call(transfer, log.read, position)
            except NotFound:
                return position  # The log is not written yet, or removed with its job.
            if not chunk.data:
                return position
            if chunk.end - chunk.start != len(chunk.data):
                transfer.io.reset("overloaded", _CUT)
                raise StreamReset(_CUT, code="overloaded")
            data = chunk.data if stop is None else chunk.data[: stop - position]
            transfer.io.write_all(data)
            position += len(data)
        return position


def _ended(transfer: Transfer) -> bool:
    try:
        return transfer.jobs.record(transfer.uid).ended
    except NotFound:
        return True


def _end(log: JobLog) -> int:
    """Position of the log's end; 0 while there is none."""
    try:
        return log.end()
    except NotFound:
        return 0


def _begin(log: JobLog, tail: int | None, since: int | None) -> int:
    """The later one of the positions that are asked for."""
    by_lines = log.tail_offset(tail) if tail is not None else 0
    return max(by_lines, log.since_offset(since / 1000)) if since is not None else by_lines
