"""Unpacks an archive into a sandbox while it is being uploaded: what kind it is, its contents tell.

tar, tar.gz, tar.xz, tar.zst and zip. Nothing is kept of what came: a chunk is decompressed in pieces, the pieces are
parsed, and file contents are written at once, so memory stays bounded whatever the archive's size.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable
from typing import IO, Protocol, cast, final

import zstandard

from prouter.agent.archives.extraction import ArchiveLimits, Extraction, Unpacked
from prouter.agent.archives.inbox import Inbox, Parser
from prouter.agent.archives.tar_reader import BLOCK, is_header, read_tar
from prouter.agent.archives.zip_reader import ZipReader
from prouter.agent.paths import split
from prouter.agent.sandbox import Sandbox
from prouter.errors import InvalidRequest

__all__ = ["Unpacker"]

_INPUT = 1 << 16  # compressed bytes given to a decompressor at once
_OUTPUT = 1 << 18  # bytes taken from it at once
_DICTIONARY_MAX = 64 << 20  # bytes: what xz -9 and zstd --ultra -21 need; each upload in progress may take that much
_GZIP, _XZ = b"\x1f\x8b", b"\xfd7zXZ\0"
_Sink = Callable[[bytes], None]


class _Stage(Protocol):
    """Takes the archive as it comes and gives a sink what is inside."""

    def feed(self, data: bytes) -> None: ...

    def finish(self) -> None: ...


@final
class _Plain:
    def __init__(self, sink: _Sink) -> None:
        self.feed = sink

    def finish(self) -> None:
        """Nothing is held back."""


@final
class _Gzip:
    """One or more gzip members (RFC 1952), zeros between or after them allowed, as tape blocks leave them."""

    def __init__(self, sink: _Sink) -> None:
        self._sink = sink
        self._inflater: zlib._Decompress | None = None
        self._ended = False

    def feed(self, data: bytes) -> None:
        for start in range(0, len(data), _INPUT):
            self._feed(data[start : start + _INPUT])

    def _feed(self, data: bytes) -> None:
        while data:
            if self._inflater is None:
                data = data.lstrip(b"\0")
                if not data or (self._ended and not data.startswith(_GZIP)):
                    return  # what follows the last member is ignored, as gzip(1) does
                self._inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
            data = self._inflate(self._inflater, data)

    def _inflate(self, inflater: zlib._Decompress, data: bytes) -> bytes:
        while True:
            try:
                piece = inflater.decompress(data, _OUTPUT)
            except zlib.error as error:
                raise _damaged("gzip", error) from error
            self._sink(piece)
            data = inflater.unconsumed_tail
            if inflater.eof:
                self._inflater = None
                self._ended = True
                return inflater.unused_data
            if not data and len(piece) < _OUTPUT:
                return b""

    def finish(self) -> None:
        if self._inflater is not None:
            raise InvalidRequest("Invalid request: the archive is cut short: its gzip data has no end")


@final
class _Xz:
    """One or more xz streams, zeros between or after them allowed."""

    def __init__(self, sink: _Sink) -> None:
        self._sink = sink
        self._decompressor: lzma.LZMADecompressor | None = None
        self._ended = False

    def feed(self, data: bytes) -> None:
        for start in range(0, len(data), _INPUT):
            self._feed(data[start : start + _INPUT])

    def _feed(self, data: bytes) -> None:
        while data:
            if self._decompressor is None:
                data = data.lstrip(b"\0")
                if not data or (self._ended and not data.startswith(_XZ)):
                    return
                memory = _DICTIONARY_MAX + (2 << 20)
                self._decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=memory)
            data = self._decompress(self._decompressor, data)

    def _decompress(self, decompressor: lzma.LZMADecompressor, data: bytes) -> bytes:
        while True:
            try:
                piece = decompressor.decompress(data, _OUTPUT)
            except lzma.LZMAError as error:
                raise _damaged("xz", error) from error
            self._sink(piece)
            if decompressor.eof:
                self._decompressor = None
                self._ended = True
                return decompressor.unused_data
            if decompressor.needs_input:
                return b""
            data = b""

    def finish(self) -> None:
        if self._decompressor is not None:
            raise InvalidRequest("Invalid request: the archive is cut short: its xz data has no end")


@final
class _Zstd:
    """One or more zstd frames. A cut frame shows by the tar in it having no end."""

    def __init__(self, sink: _Sink) -> None:
        self.write = sink  # the writer's end: it is handed pieces of the library's own size, 128 KiB
        decompressor = zstandard.ZstdDecompressor(max_window_size=_DICTIONARY_MAX)
        self._decompressor = decompressor.stream_writer(cast("IO[bytes]", self))

    def feed(self, data: bytes) -> None:
        try:
            self._decompressor.write(data)
        except zstandard.ZstdError as error:
            raise _damaged("zstd", error) from error

    def finish(self) -> None:
        """Nothing is held back."""


def _damaged(how: str, error: Exception) -> InvalidRequest:
    text = str(error)
    if "emory" in text:
        return InvalidRequest(
            f"Invalid request: the archive's {how} data needs more than 64 MiB to unpack; use a lower level"
        )
    return InvalidRequest(f"Invalid request: the archive is damaged: its {how} data does not unpack ({text})")


_COMPRESSIONS: dict[bytes, tuple[str, Callable[[_Sink], _Stage]]] = {
    _GZIP: ("tar.gz", _Gzip),
    _XZ: ("tar.xz", _Xz),
    b"\x28\xb5\x2f\xfd": ("tar.zst", _Zstd),
    **{bytes((low, 0x2A, 0x4D, 0x18)): ("tar.zst", _Zstd) for low in range(0x50, 0x60)},  # skippable frames come first
}
_ZIP = (b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\7\x08PK\3\4")


@final
class Unpacker:
    """One archive on its way into a sandbox: `feed` it as it comes, then `finish`; `abort` at any time.

    What was unpacked before an error stays in the sandbox, but no half-written file. Any error ends the unpacker.

    Args:
        sandbox: where.
        path: the directory inside that takes the archive's names (default: the sandbox itself); made when missing.
        limits: where to stop.

    Attributes:
        format: ``tar``, ``tar.gz``, ``tar.xz``, ``tar.zst`` or ``zip`` once that is known.

    Raises:
        InvalidRequest, Forbidden, Conflict: `path` is none, leaves the sandbox, or is in the way.
    """

    def __init__(self, sandbox: Sandbox, *, path: bytes = b"", limits: ArchiveLimits | None = None) -> None:
        self._out = Extraction(sandbox, split(path, root_allowed=True), limits or ArchiveLimits())
        self._inbox = Inbox()
        self._parser: Parser | None = None
        self._stage: _Stage | None = None
        self._head = b""
        self._unpacked = 0
        self.format: str | None = None

    def __enter__(self) -> Unpacker:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def feed(self, chunk: bytes | bytearray | memoryview) -> None:
        """Unpack the next chunk, of any size.

        Raises:
            InvalidRequest: no archive of a known kind, damaged, or with a member that is refused.
            Forbidden: a member or link leaves the sandbox; its name is in the text.
            TooLarge: over a limit; the text says which.
            Conflict: a file or directory is in the way of a member.
            NoSpace: the disk is full.
        """
        self._out.received += len(chunk)
        try:
            self._take(bytes(chunk))
        except BaseException:
            self.abort()
            raise

    def finish(self, *, sync: bool = False) -> Unpacked:
        """The archive has come whole: set what is left to set. What it held.

        Args:
            sync: bring everything to disk.

        Raises:
            InvalidRequest: it is cut short.
            PRouterError: as `feed`.
        """
        try:
            if self._stage is None:
                self._start(self._head)
            assert self._stage is not None
            self._stage.finish()
            self._inbox.close()
            self._advance()
            return self._out.finish(sync=sync)
        finally:
            self.abort()

    def abort(self) -> None:
        """Stop: drop the file that is being written and give all descriptors back. Aborting twice is fine."""
        self._out.close()

    def _take(self, data: bytes) -> None:
        if self._stage is not None:
            self._stage.feed(data)
            return
        self._head += data
        if len(self._head) >= BLOCK:
            self._start(self._head)

    def _start(self, head: bytes) -> None:
        """Tell the kind from the first bytes and set the stages up."""
        for magic, (name, stage) in _COMPRESSIONS.items():
            if head.startswith(magic):
                self.format, self._stage = name, stage(self._parse)
                self._parser = read_tar(self._inbox, self._out)
                break
        else:
            self._stage = _Plain(self._parse)
            if head.startswith(_ZIP):
                self.format, self._parser = "zip", ZipReader(self._inbox, self._out).read()
            elif is_header(head[:BLOCK]) or head[:BLOCK] == bytes(BLOCK):
                self.format, self._parser = "tar", read_tar(self._inbox, self._out)
            else:
                what = "neither a tar (plain, gzip, xz or zstd) nor a zip" if head else "empty"
                raise InvalidRequest(f"Invalid request: the archive is {what}")
        self._head = b""
        self._stage.feed(head)

    def _parse(self, data: bytes) -> None:
        self._unpacked += len(data)
        self._out.check_ratio(self._unpacked)
        if self._parser is not None and data:
            self._inbox.put(data)
            self._advance()

    def _advance(self) -> None:
        if self._parser is None:
            return
        try:
            next(self._parser)
        except StopIteration:
            self._parser = None
