"""Unpacking of an archive into a sandbox while it is uploaded; the contents decide its kind.

Ordinary tars, plain or in gzip or zstd, are read in the agent: a chunk is decompressed in pieces, the pieces are
parsed, and file contents are written at once, so memory stays bounded whatever the archive's size. libarchive reads
everything else, in a process of its own (`reader`); docs/decisions/archives.md says why.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator
from typing import IO, cast, final

import zstandard

from prouter.agent.archives.extraction import ArchiveLimits, Extraction, Unpacked
from prouter.agent.archives.inbox import Inbox, Parser
from prouter.agent.archives.reader import Reader
from prouter.agent.archives.spool import Spool
from prouter.agent.archives.tar_fields import BLOCK, is_header
from prouter.agent.archives.tar_reader import TarReader
from prouter.agent.sandbox import rights
from prouter.agent.sandbox.paths import refusal, split
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.errors import InvalidRequest

__all__ = ["Unpacker"]

_INPUT = 1 << 16  # compressed bytes passed to a decompressor at once
_OUTPUT = 1 << 18  # bytes taken from it at once
_WINDOW_MAX = 64 << 20  # bytes that zstd --ultra -21 needs; each upload in progress may take that much
_GZIP = b"\x1f\x8b"
_ZEROS = bytes(BLOCK)  # an empty tar, or the beginning of an ISO image (ECMA-119, 6.2.1 and 8.1)
_ISO_MARK, _ISO_MARK_END = b"CD001", 32774
_Sink = Callable[[bytes], None]


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
                    return  # bytes after the last member are ignored, as in gzip(1)
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
class _Zstd:
    """One or more zstd frames. The library does not tell whether the last one is complete; see `Unpacker.complete`."""

    def __init__(self, sink: _Sink) -> None:
        self.write = sink  # the library's stream writer calls this with pieces of 128 KiB
        self._ended = False
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX)
        self._decompressor = decompressor.stream_writer(cast("IO[bytes]", self))

    def feed(self, data: bytes) -> None:
        if self._ended:
            return
        try:
            self._decompressor.write(data)
        except zstandard.ZstdError as error:
            if "descriptor" in str(error):  # bytes after the last frame are ignored, as with gzip
                self._ended = True
                return
            if "emory" in str(error):
                raise InvalidRequest(
                    "Invalid request: the archive's zstd data needs more than 64 MiB to unpack; use a lower level"
                ) from error
            raise _damaged("zstd", error) from error

    def finish(self) -> None:
        """Do nothing: all output was passed on."""


def _damaged(how: str, error: Exception) -> InvalidRequest:
    return InvalidRequest(f"Invalid request: the archive is damaged: its {how} data does not unpack ({error})")


_COMPRESSIONS: dict[bytes, Callable[[_Sink], _Gzip | _Zstd]] = {
    _GZIP: _Gzip,
    b"\x28\xb5\x2f\xfd": _Zstd,
    **{bytes((low, 0x2A, 0x4D, 0x18)): _Zstd for low in range(0x50, 0x60)},  # skippable frames come first
}
"""Compressions by their first bytes that the agent reads itself, because it also packs with them."""
_STREAMED = (b"\xfd7zXZ\0", b"BZh", b"\x04\x22\x4d\x18", b"LZIP", b"\x1f\x9d")
"""First bytes of what libarchive reads while it arrives: xz, bzip2, lz4, lzip, compress. Others are stored first."""


@final
class Unpacker:
    """One upload being unpacked: call `feed` with its bytes, then `finish`; `abort` at any time.

    Members unpacked before an error stay in the sandbox, but never half a file. Any error ends the unpacker.

    Args:
        sandbox: the sandbox to unpack into.
        path: the directory in it to which names are relative (default: the sandbox itself); created if missing.
        limits: limits at which to stop.
        may_start_reader: whether a process may be started at once; else `work` waits for `start_reader`.

    Attributes:
        waits_for_reader: whether `work` can do nothing before `start_reader`.

    Raises:
        InvalidRequest, Forbidden, Conflict: `path` is not a path, leaves the sandbox, or is not a directory.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        path: bytes = b"",
        limits: ArchiveLimits | None = None,
        may_start_reader: bool = True,
    ) -> None:
        self._sandbox = sandbox
        self._limits = limits or ArchiveLimits()
        self._out = Extraction(sandbox, split(path, root_allowed=True), self._limits)
        self._inbox = Inbox()
        self._tar: TarReader | None = None
        self._parser: Parser | None = None
        self._stage: _Gzip | _Zstd | None = None
        self._head: bytes | None = b""
        self._first = b""
        self._sink: _Sink | None = None
        self._unpacked = 0
        self._complete = False
        self._spool: Spool | None = None
        self._unread: list[bytes] = []
        self._reader: Reader | None = None
        self._reader_wanted = False
        self._may_start = may_start_reader

    def __enter__(self) -> Unpacker:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    @property
    def waits_for_reader(self) -> bool:
        return self._reader_wanted and self._reader is None and not self._may_start

    def start_reader(self) -> None:
        """Let `work` start the process that reads archives."""
        self._may_start = True

    def feed(self, chunk: bytes | bytearray | memoryview, seconds: float | None = None) -> bool:
        """Unpack the next chunk, of any size.

        Args:
            seconds: longest time to work; None for no limit.

        Returns:
            Whether `work` has to be called until it has nothing more to do.

        Raises:
            InvalidRequest: not an archive of a known kind, damaged, or with a member that is refused.
            Forbidden: a member or link leaves the sandbox; the text names it.
            TooLarge: a limit is exceeded; the text says which.
            Conflict: a file or directory is in the way of a member.
            NoSpace: the disk is full.
            NotSupported: the archive needs libarchive, which is not installed.
        """
        self._out.received += len(chunk)
        with self._aborting():
            self._take(bytes(chunk))
        return self.work(seconds)

    def work(self, seconds: float | None = None) -> bool:
        """Process more of the fed bytes; arguments, result and errors as for `feed`."""
        if not self._reader_wanted or self.waits_for_reader:
            return self._reader_wanted
        with self._aborting():
            if self._reader is None:
                self._start_reader()
            assert self._reader is not None
            return self._reader.work(seconds)

    def complete(self, seconds: float | None = None) -> bool:
        """Read the rest of an archive that has arrived completely. Call it once, then `work` while there is more to do.

        Raises:
            InvalidRequest: the archive is cut short.
            PRouterError: as `feed`.
        """
        with self._aborting():
            self._complete = True
            if self._head is not None:
                self._start(self._head)
            if self._stage is not None:
                self._stage.finish()
            if self._sink is None:
                self._choose()
            self._inbox.close()
            self._advance()
            self._refuse_cut_zstd()
            if self._spool is not None:
                self._reader_wanted = True
            if self._reader is not None:
                self._reader.complete()
        return self.work(seconds)

    def _refuse_cut_zstd(self) -> None:
        """Refuse zstd data without an end if its tar has none either: the library does not report a missing end."""
        tar = self._tar
        whole = self._unpacked >= BLOCK if tar is None or tar.unread is not None else tar.ended
        if isinstance(self._stage, _Zstd) and not whole:
            raise InvalidRequest(
                "Invalid request: the archive is cut short: neither its zstd data nor its tar has an end"
            )

    def finish(self, *, sync: bool = False) -> Unpacked:
        """Complete the archive if necessary, set the attributes of directories, and return the counts.

        Args:
            sync: sync everything to disk.

        Raises:
            PRouterError: as `complete`.
        """
        try:
            if not self._complete:
                self.complete()
            return self._out.finish(sync=sync)
        finally:
            self.abort()

    def abort(self) -> None:
        """Stop: delete the unfinished file and release everything. Idempotent."""
        if self._reader is not None:
            self._reader.close()
        if self._spool is not None:
            self._spool.close()
        self._unread.clear()
        self._out.close()

    @contextlib.contextmanager
    def _aborting(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.abort()
            raise

    # -- kind of archive ----------------------------------------------------------------------------------------

    def _take(self, data: bytes) -> None:
        if self._head is not None:
            self._head += data
            if len(self._head) >= BLOCK:
                self._start(self._head)
        elif self._stage is not None:
            self._stage.feed(data)
        else:
            self._route(data)

    def _start(self, head: bytes) -> None:
        """Choose by the first bytes whether the agent decompresses the archive itself."""
        if not head:
            raise InvalidRequest("Invalid request: the archive is empty")
        self._head = None
        for magic, stage in _COMPRESSIONS.items():
            if head.startswith(magic):
                self._stage = stage(self._route)
                self._stage.feed(head)
                return
        self._route(head)

    def _route(self, data: bytes) -> None:
        """Pass decompressed bytes to the archive's reader."""
        self._unpacked += len(data)
        self._out.check_ratio(self._unpacked)
        if self._sink is not None:
            self._sink(data)
            return
        self._first += data
        if len(self._first) >= (_ISO_MARK_END if self._first.startswith(_ZEROS) else BLOCK):
            self._choose()

    def _choose(self) -> None:
        """Choose the archive's reader by its first bytes."""
        first, self._first = self._first, b""
        if is_header(first[:BLOCK]) or (first.startswith(_ZEROS) and not first.endswith(_ISO_MARK, 0, _ISO_MARK_END)):
            self._tar = TarReader(self._inbox, self._out)
            self._parser = self._tar.read()
            self._sink = self._parse
        elif self._stage is not None or first.startswith(_STREAMED):
            self._sink = self._stream
        else:
            self._spool = Spool(self._sandbox, self._limits.sandbox_size)
            self._sink = self._spool.write
        self._sink(first)

    # -- its reader -----------------------------------------------------------------------------------------------

    def _parse(self, data: bytes) -> None:
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
            assert self._tar is not None
            if self._tar.unread is not None:
                self._sink = self._stream
                self._stream(self._tar.unread + self._inbox.take(self._inbox.available))

    def _stream(self, data: bytes) -> None:
        self._reader_wanted = True
        if self._reader is None:
            self._unread.append(data)
        else:
            self._reader.put(data)

    def _start_reader(self) -> None:
        try:
            with rights.own():  # The job's user may not be allowed to run the agent's Python.
                self._reader = Reader(self._out, None if self._spool is None else self._spool.rewind())
        except OSError as error:
            raise refusal(error, b"the archive", writing=True) from error
        for data in self._unread:
            self._reader.put(data)
        self._unread.clear()
        if self._complete:
            self._reader.complete()
