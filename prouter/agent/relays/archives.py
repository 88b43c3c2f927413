"""Streams that pack a directory of a sandbox into an archive, or unpack one into it, as the bytes pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from prouter.agent import files
from prouter.agent.archives import ArchiveLimits, Packer, Unpacker
from prouter.agent.conditional import check_directory
from prouter.agent.paths import split, translated
from prouter.agent.relays.transfers import Transfer
from prouter.agent.sandbox import Sandbox
from prouter.conditions import Conditions
from prouter.errors import InvalidRequest

__all__ = ["ARCHIVE_KINDS"]


def read_archive(transfer: Transfer) -> None:
    """``archive.read``: packs while it sends; the preface has the size where it can be told."""
    packer = Packer(
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
    transfer.io.close()


def _next(chunks: Iterator[bytes]) -> bytes:
    """The next chunk that holds anything; none at the end."""
    return next(filter(None, chunks), b"")


def write_archive(transfer: Transfer) -> None:
    """``archive.write``: unpacks while it comes; what was unpacked before an error stays."""
    size = transfer.number("size")
    conditions = transfer.conditions()
    if conditions is not None:
        transfer.run(_prepare, transfer.sandbox, transfer.path(), conditions)
    limits = ArchiveLimits(sandbox_size=transfer.limit)
    unpacker = transfer.run(Unpacker, transfer.sandbox, path=transfer.path(), limits=limits)
    try:
        transfer.say()
        taken = 0
        while pieces := transfer.io.read_buffered():
            transfer.run(_feed_all, unpacker, pieces)
            taken += sum(map(len, pieces))
        if size is not None and taken < size:
            raise InvalidRequest(f"Invalid request: the body ended after {taken} of {size} bytes", code="truncated")
        done = transfer.run(unpacker.finish, sync=transfer.sync)
    finally:
        transfer.run(unpacker.abort)
    transfer.say(**asdict(done))
    transfer.io.close()


def _prepare(sandbox: Sandbox, path: bytes, conditions: Conditions) -> None:
    """Look at the directory the archive is for, which has no entity tag. Where it must not exist, it is made at once.

    Raises:
        PreconditionFailed: a condition does not hold; of several who want to make it, one does.
    """
    if conditions.forbids_existing:
        files.mkdir(sandbox, path, conditions)
    else:
        with translated(path):
            check_directory(sandbox, split(path, root_allowed=True), conditions)


def _feed_all(unpacker: Unpacker, pieces: list[bytes]) -> None:
    for piece in pieces:
        unpacker.feed(piece)


ARCHIVE_KINDS = {"archive.read": read_archive, "archive.write": write_archive, "archive.write.if": write_archive}
"""What carries out each kind of stream."""
