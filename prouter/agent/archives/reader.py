"""The agent's end of the archive reader, a process that reads one upload with libarchive.

The agent checks the process's messages like a client's input, because an archive might have taken the process over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import final

from prouter.agent import archive_reader
from prouter.agent.archive_reader.messages import (
    DATA,
    DIRECTORY,
    DONE,
    END,
    ENTRY,
    FAILED,
    FILE,
    HARDLINK,
    HEADER,
    LENGTH,
    LINKED_FILE,
    NO_LIBRARY,
    NO_MEMORY,
    OFFSET,
    PAYLOAD_MAX,
    SYMLINK,
    Entry,
)
from prouter.agent.archives.extraction import Extraction, refused
from prouter.errors import InvalidRequest, NotSupported, PRouterError

__all__ = ["NO_LIBRARY_ADVICE", "Reader", "library_missing"]

log = logging.getLogger("prouter.agent.archives")

NO_LIBRARY_ADVICE = "install libarchive on the agent's machine (Debian: apt-get install libarchive13)"
_SCRIPT = str(Path(archive_reader.__file__).with_name("__main__.py"))
_RECEIVED = 1 << 18  # bytes read from the process at once
_SENT = 1 << 16  # bytes written to it at once: the size of a pipe
_LINKS_KEPT = 1000
_CHECK_SECONDS = 30.0


def _start(how: str, source: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", _SCRIPT, how],
        stdin=source,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        cwd="/",
        env={},
        start_new_session=True,
    )


def library_missing() -> bool:
    """Return whether libarchive cannot be loaded; blocks while a process tries."""
    process = _start("check", subprocess.DEVNULL)
    try:
        process.communicate(timeout=_CHECK_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return False  # the machine is too busy to find out
    return process.returncode != 0


@final
class Reader:
    """One archive that a process reads and `out` creates members of. Use it from one thread at a time.

    Args:
        out: creates the members.
        spool: a descriptor of the whole archive, in which the process may seek; None if `put` brings the archive.

    Raises:
        OSError: the process could not be started.
    """

    def __init__(self, out: Extraction, spool: int | None = None) -> None:
        self._out = out
        self._process = _start("pipe" if spool is None else "file", subprocess.PIPE if spool is None else spool)
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()
        os.set_blocking(self._output, False)
        self._waiting: deque[memoryview] = deque()
        self._complete = False
        self._received = bytearray()
        self._file: Entry | None = None
        self._position = 0
        self._names: dict[bytes, list[bytes]] = {}
        self._done = False
        if self._process.stdin is not None:
            os.set_blocking(self._process.stdin.fileno(), False)

    def put(self, data: bytes) -> None:
        """Append to the archive; `work` passes it on. Bytes after the archive's end are dropped."""
        if data and not self._done:
            self._waiting.append(memoryview(data))

    def complete(self) -> None:
        """Note that the archive has arrived completely."""
        self._complete = True

    def work(self, seconds: float | None = None) -> bool:
        """Pass bytes to the process and create the members that it reports, for at most `seconds`; None for no limit.

        Returns:
            Whether there is more to do: bytes wait to be passed on or, after `complete`, the end has not been reported.

        Raises:
            InvalidRequest: not an archive, damaged, of an unsupported kind, or it crashed the process.
            NotSupported: libarchive is not installed.
            PRouterError: as `Extraction`'s methods.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while self._busy:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return True
            self._step(left)
        return False

    @property
    def _busy(self) -> bool:
        return not self._done and (bool(self._waiting) or self._complete)

    def _step(self, seconds: float | None) -> None:
        """Wait until the process accepts bytes or has a message, and handle it."""
        stdin = self._process.stdin
        if stdin is not None and self._complete and not self._waiting:
            stdin.close()
            stdin = self._process.stdin = None
        poll = select.poll()
        poll.register(self._output, select.POLLIN)
        if stdin is not None and self._waiting:
            poll.register(stdin.fileno(), select.POLLOUT)
        for fd, _ in poll.poll(None if seconds is None else max(1, int(seconds * 1000))):
            if fd == self._output:
                self._receive()
            elif not self._done:
                self._send(fd)

    def _send(self, fd: int) -> None:
        piece = self._waiting[0]
        try:
            taken = os.write(fd, piece[:_SENT])
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._waiting.clear()  # it needs no more bytes; its messages say why
            self._complete = True
            return
        if taken == len(piece):
            self._waiting.popleft()
        else:
            self._waiting[0] = piece[taken:]

    def _receive(self) -> None:
        try:
            data = os.read(self._output, _RECEIVED)
        except BlockingIOError:
            return
        if not data:
            raise self._died()
        received = self._received
        received += data
        at = 0
        with memoryview(received) as view:
            while not self._done and len(view) - at >= HEADER.size:
                kind, length = HEADER.unpack_from(view, at)
                if length > PAYLOAD_MAX:
                    raise self._nonsense()
                end = at + HEADER.size + length
                if end > len(view):
                    break
                with view[at + HEADER.size : end] as payload:
                    self._take(kind, payload)
                at = end
        del received[:at]

    def _take(self, kind: bytes, payload: memoryview) -> None:
        try:
            if kind == DATA:
                self._write(payload)
            elif kind == ENTRY:
                self._begin(Entry.decode(bytes(payload)))
            elif kind == END:
                self._end(LENGTH.unpack(payload)[0])
            elif kind == DONE:
                self._done = True
                self._waiting.clear()
            elif kind == FAILED:
                raise _failure(bytes(payload))
            else:
                raise self._nonsense()
        except struct.error as error:
            raise self._nonsense() from error

    def _begin(self, entry: Entry) -> None:
        if self._file is not None:
            raise self._nonsense()
        if entry.kind in (FILE, LINKED_FILE):
            self._out.file(entry.name, entry.mode, entry.mtime_ns)
            self._file, self._position = entry, 0
        elif entry.kind == DIRECTORY:
            self._out.directory(entry.name, entry.mode, entry.mtime_ns)
        elif entry.kind == SYMLINK:
            self._out.symlink(entry.name, entry.target, entry.mtime_ns)
        elif entry.kind == HARDLINK:
            self._out.hardlink(entry.name, entry.target)
            names = self._names.setdefault(entry.target, []) if len(self._names) < _LINKS_KEPT else []
            names += [entry.name] if len(names) < _LINKS_KEPT else []
        else:
            raise refused(entry.name, "a device, fifo or socket")

    def _write(self, payload: memoryview) -> None:
        (offset,) = OFFSET.unpack_from(payload)
        data = payload[OFFSET.size :]
        if self._file is None or offset < self._position:
            raise self._nonsense()
        if offset > self._position:
            self._out.skip_to(offset)
        self._out.write(data)
        self._position = offset + len(data)

    def _end(self, length: int) -> None:
        entry, self._file = self._file, None
        if entry is None or -1 != length < self._position:
            raise self._nonsense()
        if length > self._position:
            self._out.set_length(length)
        self._out.end_file()
        if entry.kind == LINKED_FILE:  # earlier names of the file become names of this one, which has the contents
            for name in (entry.target, *self._names.pop(entry.target, ())):
                self._out.hardlink(name, entry.name)

    def _nonsense(self) -> PRouterError:
        log.error("event=archive_reader_nonsense pid=%d", self._process.pid)
        return InvalidRequest("Invalid request: the archive cannot be read: it misled the process that reads it")

    def _died(self) -> PRouterError:
        """Return the error for a process that ended without a final message."""
        status = self._process.wait()
        if status == -signal.SIGXCPU:
            return InvalidRequest("Invalid request: the archive is refused: a minute of work showed nothing in it")
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        log.error("event=archive_reader_died pid=%d how=%s", self._process.pid, how)
        return InvalidRequest(
            f"Invalid request: the archive cannot be read: the process that reads it died of it ({how})"
        )

    def close(self) -> None:
        """End the process. Idempotent."""
        process = self._process
        self._waiting.clear()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        if process.returncode is None:
            process.kill()
            process.wait()


def _failure(payload: bytes) -> PRouterError:
    reason, text = payload[:1], payload[1:].decode("utf-8", "replace")
    if reason == NO_LIBRARY:
        return NotSupported(f"this kind of archive is not read here: {NO_LIBRARY_ADVICE}; tar, tar.gz and tar.zst work")
    if reason == NO_MEMORY:
        return InvalidRequest(
            "Invalid request: the archive needs more than the 256 MiB of memory it may have; use a lower level"
        )
    return InvalidRequest(f"Invalid request: the archive is damaged or of a kind that is not read: {text}")
