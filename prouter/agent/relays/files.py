"""Streams to single files and directories of a sandbox: read, write, list, stat, delete, mkdir."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice

from prouter.agent.relays.transfers import SMALL, Transfer
from prouter.agent.sandbox import files
from prouter.agent.sandbox.files import Entry, FileHandle
from prouter.agent.sandbox.uploads import Upload, Uploaded
from prouter.errors import InvalidRequest, RangeNotSatisfiable
from prouter.fabric.stream import MAX_PIECE
from prouter.transport.stream_io import StreamIO

__all__ = ["FILE_KINDS"]

_ENTRIES = 256
"""Directory entries that a thread reads in one call."""


def read_file(transfer: Transfer) -> None:
    """``file.read``: send a file from an offset on. With ``remove``, delete it once the reader has all of it.

    The stream then ends only after the deletion, so that a reader at the end knows that the file is deleted.
    """
    offset, length = transfer.number("offset") or 0, transfer.number("length")
    with transfer.here(files.open_read, transfer.sandbox, transfer.path()) as handle:
        if offset > handle.size:
            raise RangeNotSatisfiable(f"offset {offset} is beyond the end of the file, {handle.size} bytes")
        stop = handle.size if length is None else min(handle.size, offset + length)
        transfer.say(
            size=handle.size,
            mtime_ns=handle.mtime_ns,
            etag=handle.etag,
            mode=handle.mode,
            offset=offset,
            length=stop - offset,
        )
        transfer.sent = True
        _send(transfer, handle, offset, stop)
        if transfer.flag("remove"):
            with transfer.removal():
                _wait_until_consumed(transfer.io)
                transfer.run(handle.remove)
        transfer.io.close()


def _wait_until_consumed(io: StreamIO) -> None:
    """Wait until the reader has everything: it ends its side then, or acknowledges our end if it has done so before."""
    while io.read():
        pass
    if not io.stream.delivered:
        io.close()
        io.wait_closed()


def _send(transfer: Transfer, handle: FileHandle, position: int, stop: int) -> None:
    if stop - position <= SMALL:
        for data in handle.chunks(position, stop):
            transfer.io.write_all(data)
        return
    chunks = handle.chunks(position, stop, MAX_PIECE)
    while data := transfer.run(next, chunks, b""):
        transfer.io.write_all(data)


def write_file(transfer: Transfer) -> None:
    """``file.write``: take the bytes up to FIN, then give the file its name: all of it or nothing."""
    size = transfer.number("size")
    if size is not None and size <= SMALL and transfer.io.finished:
        data = b"".join(iter(transfer.io.read, b""))
        _refuse_truncated(len(data), size)
        done = transfer.run(_write_at_once, transfer, data)
        transfer.say()
    else:
        done = _write_as_it_comes(transfer, size)
    transfer.say(size=done.size, etag=done.etag, created=done.created)
    transfer.io.close()


def _upload(transfer: Transfer, size: int | None) -> Upload:
    mode, executable = transfer.number("mode"), transfer.flag("executable")
    return Upload(
        transfer.sandbox,
        transfer.path(),
        mode=mode,
        executable=executable,
        size=size,
        limit=transfer.limit,
        conditions=transfer.conditions(),
        sync=transfer.sync,
    )


def _write_at_once(transfer: Transfer, data: bytes) -> Uploaded:
    """Write a small file that has arrived whole, with one call in a thread.

    A call on the event loop would be faster, but a rename may wait for the file system's journal.
    """
    with _upload(transfer, len(data)) as upload:
        upload.write(data)
        return upload.commit()


def _write_as_it_comes(transfer: Transfer, size: int | None) -> Uploaded:
    upload = transfer.run(_upload, transfer, size)
    quick = transfer.limit is None  # With a limit, a write may first measure the sandbox, which takes long.
    transfer.io.takes_views = True
    try:
        transfer.say()
        taken = 0
        while pieces := transfer.io.read_buffered():
            size_here = sum(map(len, pieces))
            if quick and size_here <= SMALL:
                _write_all(upload, pieces)
            else:
                transfer.run(_write_all, upload, pieces)
            taken += size_here
        if size is not None:
            _refuse_truncated(taken, size)
        return transfer.run(upload.commit)
    finally:
        transfer.run(upload.abort)


def _write_all(upload: Upload, pieces: list[bytes]) -> None:
    for piece in pieces:
        upload.write(piece)


def _refuse_truncated(taken: int, size: int) -> None:
    if taken < size:
        raise InvalidRequest(f"Invalid request: the body ended after {taken} of {size} bytes", code="truncated")


def list_directory(transfer: Transfer) -> None:
    """``file.list``: send the entries of a directory, one JSON object per line."""
    entries = transfer.here(files.list_directory, transfer.sandbox, transfer.path())
    transfer.say()
    transfer.sent = True
    while lines := transfer.run(_lines, entries):
        transfer.io.write_all(lines)
    transfer.io.close()


def _lines(entries: Iterator[Entry]) -> bytes:
    return b"".join(json.dumps(entry.to_wire()).encode("ascii") + b"\n" for entry in islice(entries, _ENTRIES))


def stat(transfer: Transfer) -> None:
    """``file.stat``: tell what has this name. ``href`` is the name, percent-encoded."""
    entry = transfer.here(files.stat, transfer.sandbox, transfer.path(), follow=True)
    transfer.say(type=entry.type, href=entry.href, size=entry.size, mtime=entry.mtime, mode=entry.mode)
    transfer.io.close()


def delete(transfer: Transfer) -> None:
    """``file.delete``: delete a file, or a directory with all that is in it."""
    recursive, conditions = transfer.flag("recursive"), transfer.conditions()
    transfer.run(files.delete, transfer.sandbox, transfer.path(), recursive=recursive, conditions=conditions)
    transfer.say()
    transfer.io.close()


def mkdir(transfer: Transfer) -> None:
    """``file.mkdir``: make a directory."""
    created = transfer.run(files.mkdir, transfer.sandbox, transfer.path(), transfer.conditions())
    transfer.say(created=created)
    transfer.io.close()


FILE_KINDS = {
    "file.read": read_file,
    "file.write": write_file,
    "file.list": list_directory,
    "file.stat": stat,
    "file.delete": delete,
    "file.mkdir": mkdir,
    "file.write.if": write_file,
    "file.delete.if": delete,
    "file.mkdir.if": mkdir,
}
"""The function for each kind of stream. Kinds with conditions have names that earlier agents do not know."""
