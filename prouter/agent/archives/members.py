"""Members of an archive of a sandbox: the files and directories of a tree that its masks select, ready to be read.

Directories, files and symbolic links (as links, whatever their target). A file with several names is packed once per
name. Sockets, fifos, devices and vanished files are left out, and `notes` say so. Files that may not be read, or whose
path is too long, are never left out silently: the archive is refused, or ends in an error.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import final

from prouter.agent.sandbox import trees
from prouter.agent.sandbox.files import FileHandle
from prouter.agent.sandbox.paths import refusal, shown, text, translated
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.agent.sandbox.scratch import SCRATCH_NAME
from prouter.errors import Forbidden, TooLarge
from prouter.keeper.log_gaps import LOG_FILES

__all__ = ["Masks", "Member", "Tree"]

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NOTES_MAX = 100
_NAMED_MAX = 5


@dataclass(frozen=True, slots=True)
class Member:
    """One member.

    Attributes:
        path: relative to the packed directory, without a trailing slash.
        mode: type and permission bits.
        size: bytes of a file's contents, 0 for others.
        target: the target of a symbolic link.
    """

    path: bytes
    mode: int
    size: int
    mtime_ns: int
    target: bytes = b""

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


@final
class Masks:
    """fnmatch masks on whole relative paths; ``*`` matches ``/`` too.

    Args:
        include: only paths that match one of these are packed; empty for everything.
        exclude: paths that match one of these are left out, with everything below; it wins over `include`.
    """

    def __init__(self, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> None:
        include = list(include)
        self._include = _compiled(include)
        self._beginnings = [re.split(r"[*?[]", mask, maxsplit=1)[0] for mask in include]
        self._exclude = _compiled(exclude)

    def take(self, path: bytes) -> bool:
        """Return whether this path is packed."""
        return self.enter(path) and (self._include is None or self._include.match(text(path)) is not None)

    def concern(self, path: bytes) -> bool:
        """Return whether this path is packed, or could have something below it that is."""
        if not self.enter(path) or not self._beginnings:
            return self.enter(path)
        below = text(path) + "/"
        return self.take(path) or any(one.startswith(below) or below.startswith(one) for one in self._beginnings)

    def enter(self, path: bytes) -> bool:
        """Return whether the contents of this directory are examined."""
        return self._exclude is None or self._exclude.match(text(path)) is None


def _compiled(masks: Iterable[str]) -> re.Pattern[str] | None:
    patterns = [fnmatch.translate(mask) for mask in masks]
    return re.compile("|".join(patterns)) if patterns else None


@final
@dataclass(slots=True)
class Tree:
    """A directory of a sandbox, seen through masks."""

    sandbox: Sandbox
    base: tuple[bytes, ...]
    masks: Masks
    notes: list[str] = field(default_factory=list)
    _missing: list[tuple[bytes, OSError]] = field(default_factory=list)
    _missing_count: int = 0

    def refuse_incomplete(self) -> None:
        """Raise if something that belongs in the archive cannot be packed.

        Raises:
            Forbidden: it may not be read; the text names the first few.
            TooLarge: its path is too long.
            PRouterError: the disk or the system fails.
        """
        if not self._missing:
            return
        path, error = self._missing[0]
        if error.errno == errno.ENAMETOOLONG:
            raise TooLarge(
                f"the archive would have a path of more than {trees.PATH_MAX} bytes, below '{shown(path)}': pack parts"
                " of the tree, or leave it out with exclude="
            )
        if error.errno not in (errno.EACCES, errno.EPERM):
            raise refusal(error, path)
        names = ", ".join(f"'{shown(path)}'" for path, _ in self._missing)
        more = self._missing_count - len(self._missing)
        raise Forbidden(
            f"no permission to read {names}{f' and {more} more' if more else ''}: leave them out with exclude=, or give"
            " the agent's user permission"
        )

    def _miss(self, path: bytes, error: OSError) -> None:
        self._missing_count += 1
        if len(self._missing) < _NAMED_MAX:
            self._missing.append((path, error))

    def note(self, path: bytes, what: str) -> None:
        """Note, for the log, a difference between archive and disk; at most 100 notes are kept."""
        if len(self.notes) < _NOTES_MAX:
            self.notes.append(f"{shown(path)}: {what}")

    def members(self) -> Iterator[Member]:
        """Yield all members, sorted, directories before their contents; files are not opened.

        Members that cannot be packed are left to `refuse_incomplete`.
        """
        for found in self._found():
            if stat.S_ISREG(found.info.st_mode) and not self._readable(found):
                self._miss(found.path, OSError(errno.EACCES, "may not be read"))
                continue
            member = self._member(found)
            if member is not None:
                yield member

    def opened(self) -> Iterator[tuple[Member, FileHandle | None]]:
        """Yield all members, files with an open handle, which is closed when the next member is requested.

        Raises:
            PRouterError: as `refuse_incomplete`.
        """
        for found in self._found():
            self.refuse_incomplete()
            if not stat.S_ISREG(found.info.st_mode):
                member = self._member(found)
                if member is not None:
                    yield member, None
                continue
            handle = self._open_found(found)
            if handle is not None:
                with handle:
                    mode = stat.S_IFREG | handle.mode
                    yield Member(found.path, mode, handle.size, handle.mtime_ns), handle
        self.refuse_incomplete()

    def open(self, member: Member) -> FileHandle | None:
        """Open a file that was listed before; None if it no longer exists.

        Raises:
            Forbidden: it may no longer be read.
        """
        parts = (*self.base, *member.path.split(b"/"))
        log = self.sandbox.logs.open_listed(parts[0]) if len(parts) == 1 else None
        if log is not None:
            return FileHandle(log, self.sandbox, parts)
        try:
            parent = self.sandbox.open(parts[:-1], os.O_PATH | os.O_DIRECTORY)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise refusal(error, member.path) from error
            self.note(member.path, os.strerror(error.errno or 0))
            return None
        try:
            return self._open_in(parent, parts[-1], member.path)
        finally:
            os.close(parent)

    def _found(self) -> Iterator[trees.Found]:
        with translated(b"/".join(self.base)):
            for found in trees.walk(self.sandbox, self.base, enter=self._enter, unreadable=self._unreadable, logs=True):
                if self._enter(found.path) and self.masks.take(found.path):
                    yield found

    def _unreadable(self, path: bytes, error: OSError) -> None:
        if self._enter(path) and self.masks.concern(path):
            self._miss(path, error)

    def _enter(self, path: bytes) -> bool:
        """Return whether this path is examined; the directory for temporary files only if it is named itself."""
        return (bool(self.base) or path != SCRATCH_NAME) and self.masks.enter(path)

    def _member(self, found: trees.Found) -> Member | None:
        info = found.info
        size, target = 0, b""
        if stat.S_ISLNK(info.st_mode):
            try:
                target = os.readlink(found.name, dir_fd=found.parent)
            except OSError as error:
                self.note(found.path, os.strerror(error.errno or 0))
                return None
        elif stat.S_ISREG(info.st_mode):
            size = self._size(found)
        elif not stat.S_ISDIR(info.st_mode):
            self.note(found.path, "left out: a socket, fifo or device")
            return None
        return Member(found.path, info.st_mode, size, info.st_mtime_ns, target)

    def _size(self, found: trees.Found) -> int:
        """Return a file's length; for a log whose oldest part was cut, the length that a reader gets."""
        if not self.base and found.path in LOG_FILES:
            handle = self._open_found(found)
            if handle is not None:
                with handle:
                    return handle.size
        return found.info.st_size

    def _readable(self, found: trees.Found) -> bool:
        if self._is_log(found):
            return True
        return os.access(found.name, os.R_OK, dir_fd=found.parent, effective_ids=True)

    def _is_log(self, found: trees.Found) -> bool:
        """Return whether it is one of the job's logs, which is in another directory under another name."""
        return found.path != found.name and not self.base and found.path in LOG_FILES

    def _open_found(self, found: trees.Found) -> FileHandle | None:
        if self._is_log(found):
            log = self.sandbox.logs.open_listed(found.path)
            return None if log is None else FileHandle(log, self.sandbox, (found.path,))
        return self._open_in(found.parent, found.name, found.path)

    def _open_in(self, parent: int, name: bytes, path: bytes) -> FileHandle | None:
        try:
            fd = os.open(name, _READ, dir_fd=parent)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise refusal(error, path) from error
            self.note(path, os.strerror(error.errno or 0))
            return None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            self.note(path, "left out: no longer a file")
            return None
        return FileHandle(fd, self.sandbox, (*self.base, *path.split(b"/")))
