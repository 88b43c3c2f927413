"""Files of a sandbox: reading, listing, examining, making directories, deleting. Writing is in uploads.py.

Paths are bytes as `paths.split` accepts them. Every function raises only errors of `prouter.errors`.
"""

from __future__ import annotations

import contextlib
import os
import stat as st
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

from prouter.agent.sandbox import trees
from prouter.agent.sandbox.conditional import check_directory, check_file, etag_of
from prouter.agent.sandbox.log_files import LogFiles
from prouter.agent.sandbox.paths import hidden_name, href, shown, split, text, translated
from prouter.agent.sandbox.sandbox import OPEN_DIRECTORY, Sandbox
from prouter.agent.sandbox.scratch import SCRATCH_NAME
from prouter.conditions import Conditions
from prouter.errors import Conflict, Forbidden, PreconditionFailed
from prouter.keeper.log_gaps import COPIED, COPY_END, LOG_FILES, first_data, gap_marker

__all__ = ["Entry", "FileHandle", "delete", "etag_of", "list_directory", "mkdir", "open_read", "stat"]

_COPY_MODE = 0o600
_PATH_ONLY = os.O_PATH | os.O_CLOEXEC
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a directory.

    Attributes:
        name: its name; bytes that are not UTF-8 as surrogates (PEP 383), so that ``os.fsencode`` returns the same name.
        href: the name percent-encoded, ready to be a path segment of a URL.
        type: ``file``, ``dir``, ``link`` (never followed) or ``other`` (fifo, socket, device).
        size: bytes.
        mtime: seconds since the epoch.
        mode: permission bits.
    """

    name: str
    href: str
    type: str
    size: int
    mtime: float
    mode: int

    def to_wire(self) -> dict[str, Any]:
        """Return the entry as a JSON-ready map; encode its name with ``surrogateescape`` where UTF-8 is strict."""
        return asdict(self)


def _entry(name: bytes, info: os.stat_result) -> Entry:
    kinds = {st.S_IFREG: "file", st.S_IFDIR: "dir", st.S_IFLNK: "link"}
    kind = kinds.get(st.S_IFMT(info.st_mode), "other")
    return Entry(text(name), href(name), kind, info.st_size, info.st_mtime_ns / 1e9, st.S_IMODE(info.st_mode))


@final
class FileHandle:
    """A file open for reading, as it was at the moment of opening.

    A job's log whose oldest part was cut (see prouter.agent.logs.job_log) starts with a line that says so.

    Attributes:
        size: bytes that can be read.
        mtime_ns: nanoseconds since the epoch.
        etag: the entity tag (`etag_of`).
        mode: permission bits.
    """

    def __init__(self, fd: int, sandbox: Sandbox, parts: tuple[bytes, ...], *, log: bool = False) -> None:
        info = os.fstat(fd)
        self.fd = fd
        self.mtime_ns = info.st_mtime_ns
        self.etag = etag_of(info)
        self.mode = st.S_IMODE(info.st_mode)
        self._sandbox = sandbox
        self._parts = parts
        self._identity = (info.st_dev, info.st_ino)
        self._is_log = log or (len(parts) == 1 and parts[0] in LOG_FILES)
        self._skip = first_data(fd) if self._is_log else 0
        self._prefix = gap_marker(self._skip) if self._skip else b""
        self.size = len(self._prefix) + max(0, info.st_size - self._skip)

    def __enter__(self) -> FileHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def read_chunk(self, offset: int, n: int) -> bytes:
        """Read at most `n` bytes at `offset`; fewer only at the end or where more would cost a copy, none at the end.

        Raises:
            Conflict: the file was truncated below `size` while it was being read.
        """
        n = min(n, self.size - offset)
        if n <= 0:
            return b""
        if offset < len(self._prefix):
            return self._prefix[offset : offset + n]
        with translated(self._path):
            data = os.pread(self.fd, n, offset - len(self._prefix) + self._skip)
            lost = self._is_log and first_data(self.fd) > self._skip
        if not data or lost:
            raise Conflict(f"file '{shown(self._path)}' was cut while it was being read")
        return data

    def chunks(self, start: int = 0, stop: int | None = None, n: int = 1 << 18) -> Iterator[bytes]:
        """Yield the bytes from `start` to `stop` (default: the end), at most `n` at once. Raises as `read_chunk`."""
        stop = self.size if stop is None else min(stop, self.size)
        while start < stop:
            data = self.read_chunk(start, min(n, stop - start))
            start += len(data)
            yield data

    def remove(self) -> bool:
        """Delete the name by which this file was opened, unless another file has it now; return whether it did."""
        with translated(self._path, writing=True), self._sandbox.naming:
            if self._is_log and self._sandbox.logs.unlist(self._parts[0]):
                return True
            try:
                if self._identity != _identity(self._sandbox, self._parts):
                    return False
                with self._sandbox.parent(self._parts) as parent:
                    return self._remove_from(parent)
            except FileNotFoundError:
                return False

    def _remove_from(self, parent: int) -> bool:
        """Delete the name through a hidden one, because a new file may get the name at any moment and must stay."""
        name, hidden = self._parts[-1], hidden_name()
        os.rename(name, hidden, src_dir_fd=parent, dst_dir_fd=parent)
        try:
            ours = _identity(self._sandbox, (*self._parts[:-1], hidden)) == self._identity
        except OSError:
            ours = False  # a dangling link by now
        if not ours:
            try:
                os.link(hidden, name, src_dir_fd=parent, dst_dir_fd=parent, follow_symlinks=False)
            except FileExistsError:
                pass  # an even newer file
            except PermissionError:  # a directory
                os.rename(hidden, name, src_dir_fd=parent, dst_dir_fd=parent)
                return False
        os.unlink(hidden, dir_fd=parent)
        return ours

    @property
    def _path(self) -> bytes:
        return b"/".join(self._parts)


def _identity(sandbox: Sandbox, parts: tuple[bytes, ...]) -> tuple[int, int]:
    fd = sandbox.open(parts, _PATH_ONLY)
    try:
        info = os.fstat(fd)
        return info.st_dev, info.st_ino
    finally:
        os.close(fd)


def open_read(sandbox: Sandbox, path: bytes) -> FileHandle:
    """Open a regular file for reading. Links that stay inside the sandbox are followed; nothing else is ever opened.

    Raises:
        NotFound, IsDirectory, InvalidRequest: it does not exist, is a directory, or the path is invalid.
        Forbidden: it leaves the sandbox, may not be read, or is a fifo, device or socket.
    """
    parts = split(path, root_allowed=True)
    with translated(path):
        log = _log(sandbox, parts)
        fd = sandbox.open_file(parts, os.O_RDONLY) if log is None else log
        try:
            if log is None and (log := _copied_log(sandbox, fd)) is not None:
                os.close(fd)
                fd = log
            return FileHandle(fd, sandbox, parts, log=log is not None)
        except BaseException:
            os.close(fd)
            raise


def _log(sandbox: Sandbox, parts: tuple[bytes, ...]) -> int | None:
    """Open the log that this path stands for; None for any other path."""
    if len(parts) != 1 or parts[0] not in LOG_FILES:
        return None
    with sandbox.opened():  # A removed sandbox has no log.
        return sandbox.logs.open_listed(parts[0])


def _copied_log(sandbox: Sandbox, fd: int) -> int | None:
    """Open the log of which this file, reached by a link, is the job's copy; None for any other file."""
    info = os.fstat(fd)
    if st.S_IMODE(info.st_mode) != _COPY_MODE or info.st_size > COPIED + len(COPY_END):
        return None
    for name in filter(sandbox.logs.listed, LOG_FILES):
        with contextlib.suppress(OSError):
            if _identity(sandbox, (name,)) == (info.st_dev, info.st_ino):
                return sandbox.logs.open_listed(name)
    return None


def list_directory(sandbox: Sandbox, path: bytes = b"") -> Iterator[Entry]:
    """List a directory, sorted by the bytes of the names. Entries that vanish meanwhile are left out, and so is the
    sandbox's own directory for temporary files.

    The call opens the directory and raises its errors; iteration examines the entries. Close the iterator if it is not
    exhausted.

    Raises:
        NotFound, Conflict, Forbidden, InvalidRequest: as `open_read`; Conflict if it is not a directory.
    """
    parts = split(path, root_allowed=True)
    with translated(path):
        try:
            fd = sandbox.open(parts, _LIST)
        except NotADirectoryError as error:
            if stat(sandbox, path, follow=True).type != "dir":
                raise Conflict(f"'{shown(path)}' is not a directory") from error
            raise
    logs, hidden = (None, ()) if parts else (sandbox.logs, (SCRATCH_NAME,))
    entries = _entries(fd, path, logs, hidden)
    next(entries)
    return (entry for entry in entries if entry is not None)


def _entries(fd: int, path: bytes, logs: LogFiles | None, hidden: Sequence[bytes]) -> Iterator[Entry | None]:
    """Yield None once the descriptor is owned, then the entries, with `logs` in place of files with their names."""
    try:
        yield None
        listed = set(filter(logs.listed, LOG_FILES)) if logs is not None else set()
        with translated(path):
            names = sorted(listed.union(map(os.fsencode, os.listdir(fd))))
        for name in names:
            if name in hidden:
                continue
            with translated(path), contextlib.suppress(FileNotFoundError):
                if logs is not None and name in listed:
                    yield _entry(name, logs.status(LOG_FILES[name]))
                else:
                    yield _entry(name, os.stat(name, dir_fd=fd, follow_symlinks=False))
    finally:
        os.close(fd)


def stat(sandbox: Sandbox, path: bytes, *, follow: bool = False) -> Entry:
    """Return what is at `path`, without opening it.

    Args:
        follow: whether to follow a link as the last name (inside the sandbox) or to describe it.

    Raises:
        NotFound, Forbidden, InvalidRequest: as `open_read`.
    """
    parts = split(path, root_allowed=True)
    with translated(path):
        log = _log(sandbox, parts)
        fd = log if log is not None else sandbox.open(parts, _PATH_ONLY if follow else _PATH_ONLY | os.O_NOFOLLOW)
        try:
            return _entry(parts[-1] if parts else b"", os.fstat(fd))
        finally:
            os.close(fd)


def mkdir(sandbox: Sandbox, path: bytes, conditions: Conditions | None = None) -> bool:
    """Create a directory and those above it; return whether it was missing.

    Args:
        conditions: what must hold.

    Raises:
        PreconditionFailed: a condition does not hold.
        Conflict: something else is there.
        NoSpace, Forbidden, InvalidRequest: as their names say.
    """
    parts = split(path, root_allowed=True)
    if conditions is not None:
        with translated(path, writing=True):
            check_directory(sandbox, parts, conditions)
    if not parts:
        return False
    with translated(path, writing=True), sandbox.parent(parts, make=True) as parent:
        try:
            os.mkdir(parts[-1], 0o755, dir_fd=parent)
        except FileExistsError:
            os.close(sandbox.open(parts, OPEN_DIRECTORY & ~os.O_NOFOLLOW))
            if conditions is not None and conditions.forbids_existing:
                raise PreconditionFailed("If-None-Match does not hold: it exists already") from None
            return False
        return True


def delete(sandbox: Sandbox, path: bytes, *, recursive: bool = False, conditions: Conditions | None = None) -> None:
    """Delete a file, a link (not its target) or a directory.

    Args:
        recursive: whether to delete a directory with its contents; otherwise it must be empty.
        conditions: what must hold.

    Raises:
        PreconditionFailed: a condition does not hold.
        NotFound: it does not exist.
        Conflict: the directory is not empty, or is the sandbox itself.
        Conflict, Forbidden: code ``not_removed``: part of a tree could not be removed (a mount point, files that keep
            being created), or may not be.
    """
    parts = split(path, root_allowed=True)
    with translated(path), sandbox.parent(parts) as parent:
        with sandbox.naming:
            if len(parts) == 1 and sandbox.logs.listed(parts[0]):
                if conditions is not None:
                    check_file(sandbox, parts, conditions)
                if sandbox.logs.unlist(parts[0]):
                    return
            info = os.stat(parts[-1], dir_fd=parent, follow_symlinks=False)
            directory = st.S_ISDIR(info.st_mode)
            if conditions is not None:
                (check_directory if directory else check_file)(sandbox, parts, conditions)
            if not directory:
                os.unlink(parts[-1], dir_fd=parent)
            elif not recursive:
                os.rmdir(parts[-1], dir_fd=parent)
        if directory and recursive:
            try:
                trees.remove(parent, parts[-1])
            except trees.NotRemoved as error:
                kind = Conflict if error.permitted else Forbidden
                raise kind(f"'{shown(path)}' is not removed: {error}", code="not_removed") from error
