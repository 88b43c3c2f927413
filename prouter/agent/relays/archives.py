"""Streams that pack a directory of a sandbox into an archive, or unpack an archive into it, while the bytes pass."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import asdict

import gevent
from gevent.lock import BoundedSemaphore

from prouter.agent.archives import ArchiveLimits, Packer, Unpacker
from prouter.agent.archives.reader import NO_LIBRARY_ADVICE, library_missing
from prouter.agent.relays.transfers import Transfer
from prouter.agent.sandbox import files
from prouter.agent.sandbox.conditional import check_directory
from prouter.agent.sandbox.paths import split, translated
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.conditions import Conditions
from prouter.errors import InvalidRequest, Overloaded

__all__ = ["ARCHIVE_KINDS", "warn_of_missing_library"]

log = logging.getLogger("prouter.agent.relays")

_SLICE = 0.25
"""Seconds for which a thread works on one archive before others have their turn."""
_READERS_MOST = 16
"""Processes that read archives at the same time; each may take 300 MiB."""
_READER_WAIT = 30.0
"""Seconds for which an upload waits for a free one."""
_READERS = BoundedSemaphore(_READERS_MOST)


def read_archive(transfer: Transfer) -> None:
    """``archive.read``: send an archive while packing it. The preface has its size if that is known beforehand."""
    packer = transfer.here(
        Packer,
        transfer.sandbox,
        transfer.path(),
        include=transfer.texts("include"),
        exclude=transfer.texts("exclude"),
        archive_format=transfer.text("format", "tar"),
    )
    transfer.say(size=transfer.run(packer.size))
    transfer.sent = True
    chunks = iter(packer)
    while data := transfer.run(_next, chunks):
        transfer.io.write_all(data)
    if packer.notes:
        log.info("event=archive_differs job=%s members=%d first=%r", transfer.uid, len(packer.notes), packer.notes[0])
    transfer.io.close()


def _next(chunks: Iterator[bytes]) -> bytes:
    """The next chunk that is not empty; None at the end."""
    return next(filter(None, chunks), b"")


def warn_of_missing_library() -> None:
    """Log at the agent's start if libarchive is missing, so that only ordinary tars can be unpacked."""
    try:
        missing = gevent.get_hub().threadpool.apply(library_missing)
    except OSError as error:
        log.warning("event=archives_unchecked error=%r", str(error))
        return
    if missing:
        log.warning("event=archives_limited kinds=tar,tar.gz,tar.zst advice=%r", NO_LIBRARY_ADVICE)


def write_archive(transfer: Transfer) -> None:
    """``archive.write``: unpack an archive while it arrives. What was unpacked before an error stays."""
    size = transfer.number("size")
    conditions = transfer.conditions()
    if conditions is not None:
        transfer.run(_prepare, transfer.sandbox, transfer.path(), conditions)
    limits = ArchiveLimits(sandbox_size=transfer.limit)
    unpacker = transfer.run(Unpacker, transfer.sandbox, path=transfer.path(), limits=limits, may_start_reader=False)
    with contextlib.ExitStack() as held:
        held.callback(transfer.run, unpacker.abort)
        transfer.say()
        taken = 0
        while pieces := transfer.io.read_buffered():
            _work(transfer, unpacker, held, transfer.run(_feed_all, unpacker, pieces))
            taken += sum(map(len, pieces))
        if size is not None and taken < size:
            raise InvalidRequest(f"Invalid request: the body ended after {taken} of {size} bytes", code="truncated")
        _work(transfer, unpacker, held, transfer.run(unpacker.complete, _SLICE))
        done = transfer.run(unpacker.finish, sync=transfer.sync)
    transfer.say(**asdict(done))
    transfer.io.close()


def _prepare(sandbox: Sandbox, path: bytes, conditions: Conditions) -> None:
    """Check the conditions for the archive's directory, which has no entity tag. Make it if it must not exist yet.

    Raises:
        PreconditionFailed: a condition does not hold, or another request has made the directory.
    """
    if conditions.forbids_existing:
        files.mkdir(sandbox, path, conditions)
    else:
        with translated(path):
            check_directory(sandbox, split(path, root_allowed=True), conditions)


def _feed_all(unpacker: Unpacker, pieces: list[bytes]) -> bool:
    more = False
    for piece in pieces:
        more = unpacker.feed(piece, 0)
    return more and unpacker.work(_SLICE)


def _work(transfer: Transfer, unpacker: Unpacker, held: contextlib.ExitStack, more: bool) -> None:
    """Unpack in slices, so that a large archive does not occupy a thread, and ends when its client disconnects."""
    while more:
        if unpacker.waits_for_reader:
            _take_place(held)
            unpacker.start_reader()
        transfer.io.refuse_reset()
        more = transfer.run(unpacker.work, _SLICE)


def _take_place(held: contextlib.ExitStack) -> None:
    if not _READERS.acquire(timeout=_READER_WAIT):
        raise Overloaded(f"the agent reads {_READERS_MOST} archives already; try again", retry_after=_READER_WAIT)
    held.callback(_READERS.release)


ARCHIVE_KINDS = {"archive.read": read_archive, "archive.write": write_archive, "archive.write.if": write_archive}
"""The function for each kind of stream."""
