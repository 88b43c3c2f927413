"""Upload of one file into a sandbox, so that its name has either all of it or its earlier contents.

The bytes go into a nameless file (O_TMPFILE) in the target's directory, so a killed agent leaves nothing behind. On
file systems without such files, a hidden file beside the target is used. `Upload.commit` gives the data its name in one
step; docs/files.md says what that guarantees. It waits for the disk only where it must: file systems without nameless
files are mostly network ones, which may report a full disk or quota only then.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from dataclasses import dataclass
from typing import final

from prouter.agent.sandbox import syscalls
from prouter.agent.sandbox.conditional import check_file, etag_of
from prouter.agent.sandbox.paths import hidden_name, shown, split, translated
from prouter.agent.sandbox.quota import Claim, freed_by_replacing
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.conditions import Conditions
from prouter.errors import Conflict, InvalidRequest, NoSpace, PreconditionFailed

__all__ = ["Upload", "Uploaded"]

_WRITEBACK = 8 << 20  # bytes after which writing to disk begins; measured: halves the time to a committed 512 MiB
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)


@dataclass(frozen=True, slots=True)
class Uploaded:
    """The result of an upload: `size` in bytes, `etag` as `conditional.etag_of`, `created` if the name was free."""

    size: int
    etag: str
    created: bool


@final
class Upload:
    """An upload in progress: call `write` with the bytes in order, then `commit`; `abort` at any time.

    As a context manager it aborts unless it was committed. A link as the last name is replaced, never written through.

    Args:
        sandbox: the sandbox to write into.
        path: path of the file; missing directories above it are created.
        mode: permission bits (default 0644); not those of the file that is replaced.
        executable: adds 0111.
        size: the number of bytes, if known: a lack of space is then reported at once, a wrong number of bytes at
            `commit`.
        limit: bytes that the sandbox may hold in all; None for no limit.
        exclusive: whether to refuse to replace anything.
        conditions: what must hold, now and at the moment the file gets its name.
        sync: whether to sync the data before the name changes, and the name before `commit` returns, on every file
            system.

    Raises:
        InvalidRequest, Forbidden: the path or the mode is invalid, or the path leaves the sandbox.
        Conflict: a directory has that name; or, with `exclusive`, anything has.
        PreconditionFailed: one of `conditions` does not hold.
        NoSpace: `size` puts the sandbox over `limit`, or is more than the disk has free.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        path: bytes,
        *,
        mode: int | None = None,
        executable: bool = False,
        size: int | None = None,
        limit: int | None = None,
        exclusive: bool = False,
        conditions: Conditions | None = None,
        sync: bool = False,
    ) -> None:
        if mode is not None and mode & ~0o777:
            raise InvalidRequest(f"Invalid request: mode {mode:o} has more than permission bits")
        if path.endswith(b"/"):
            raise InvalidRequest(f"Invalid request: '{shown(path)}' names a directory, not a file")
        parts = split(path)
        self._path, self._parts, self._name = path, parts, parts[-1]
        self._sandbox, self._conditions = sandbox, conditions
        self._mode = (0o644 if mode is None else mode) | (0o111 if executable else 0)
        self._size, self._exclusive, self._sync = size, exclusive, sync
        self._written = self._flushed = 0
        self._fd = self._parent = -1
        self._replaces = False
        self._hidden: bytes | None = None
        self._claim: Claim | None = None
        try:
            with translated(path, writing=True):
                if len(parts) == 1 and sandbox.logs.listed(parts[0]):
                    raise Conflict(f"'{shown(path)}' is the job's log; choose another name")
                if conditions is not None:
                    check_file(sandbox, parts, conditions)
                self._parent = sandbox.make_directory(parts[:-1])
                self._refuse_target()
                self._refuse_lack_of_space()
                self._open_file()
                if limit is not None:
                    self._claim_space(sandbox, limit)
        except BaseException:
            self.abort()
            raise

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    @property
    def waits_for_disk(self) -> bool:
        """Whether `commit` waits for the disk."""
        return self._sync or self._hidden is not None

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append a chunk.

        Raises:
            NoSpace: the disk, the quota or the limit is used up.
            InvalidRequest: more bytes than `size`.
            TooLarge: the file system cannot hold a file of that size.
        """
        length = len(chunk)
        total = self._written + length
        if self._size is not None and total > self._size:
            raise InvalidRequest(
                f"Invalid request: more than the announced {self._size} bytes came for '{self._shown}'"
            )
        with translated(self._path, writing=True):
            if self._claim is not None:
                self._claim.cover(total)
            done = os.write(self._fd, chunk)
            while done < length:
                done += os.write(self._fd, memoryview(chunk)[done:])
        self._written = total
        if self.waits_for_disk and total - self._flushed >= _WRITEBACK:
            syscalls.start_writeback(self._fd, self._flushed, total - self._flushed)
            self._flushed = total

    def commit(self) -> Uploaded:
        """Give the bytes their name. Run it in a thread if it `waits_for_disk`.

        Raises:
            InvalidRequest: fewer bytes than `size`; nothing changes.
            Conflict: the name was taken by a directory (or, with `exclusive`, by anything) meanwhile, or its directory
                removed.
            PreconditionFailed: a condition no longer holds.
            NoSpace: the disk or quota is used up.
        """
        try:
            if self._size is not None and self._written != self._size:
                raise InvalidRequest(f"Invalid request: {self._written} of {self._size} bytes came for '{self._shown}'")
            with translated(self._path, writing=True):
                os.fchmod(self._fd, self._mode)
                now = time.time_ns()
                os.utime(
                    self._fd, ns=(now, now)
                )  # finer than the kernel's clock, so that every upload has its own etag
                if self.waits_for_disk:
                    os.fdatasync(self._fd)
                freed = 0 if self._claim is None else freed_by_replacing(self._name, self._parent)
                with self._sandbox.naming:
                    created = self._give_name()
                if self._sync:
                    self._bring_name_to_disk()
                if self._claim is not None:
                    self._claim.settle(freed)
                return Uploaded(self._written, etag_of(os.fstat(self._fd)), created)
        finally:
            self.abort()

    def abort(self) -> None:
        """Delete uncommitted bytes. Idempotent, at any time."""
        if self._hidden is not None:
            with contextlib.suppress(OSError):  # deleted with its directory, or no longer ours to delete
                os.unlink(self._hidden, dir_fd=self._parent)
            self._hidden = None
        if self._claim is not None:
            self._claim.release()
        for fd in (self._fd, self._parent):
            if fd >= 0:
                os.close(fd)
        self._fd = self._parent = -1

    @property
    def _shown(self) -> str:
        return shown(self._path)

    def _claim_space(self, sandbox: Sandbox, limit: int) -> None:
        self._claim = Claim(sandbox.quota, limit, unseen=self._hidden is None)
        self._claim.allow(freed_by_replacing(self._name, self._parent))
        self._claim.cover(self._size or 0)

    def _refuse_target(self) -> None:
        try:
            info = os.stat(self._name, dir_fd=self._parent, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(info.st_mode):
            raise Conflict(f"'{self._shown}' is a directory")
        if self._exclusive:
            raise Conflict(f"'{self._shown}' exists already")
        self._replaces = True

    def _refuse_lack_of_space(self) -> None:
        if self._size is None or self._size < _WRITEBACK:
            return
        space = os.statvfs(f"/proc/self/fd/{self._parent}")
        if self._size > space.f_bavail * space.f_frsize:
            raise NoSpace(f"no space left on the agent's disk for the {self._size} bytes of '{self._shown}'")

    def _open_file(self) -> None:
        try:
            self._fd = os.open(b".", os.O_TMPFILE | os.O_WRONLY, 0o600, dir_fd=self._parent)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
            hidden = hidden_name()
            self._fd = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY, 0o600, dir_fd=self._parent)
            self._hidden = hidden

    def _give_name(self) -> bool:
        """Give the file its name, replacing an earlier file; return whether the name was free."""
        conditions = self._conditions
        if conditions is not None:
            check_file(self._sandbox, self._parts, conditions)
        alone = conditions is not None and conditions.forbids_existing
        if self._exclusive or alone or not (self._replaces or self._hidden):
            try:
                self._link(self._name)
                return True
            except FileExistsError:
                if alone:
                    raise PreconditionFailed("If-None-Match does not hold: it exists already") from None
                if self._exclusive:
                    raise
        if self._hidden is None:
            hidden = hidden_name()
            self._link(hidden)
            self._hidden = hidden
        os.replace(self._hidden, self._name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
        self._hidden = None
        return not self._replaces

    def _bring_name_to_disk(self) -> None:
        directory = os.open(b".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._parent)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _link(self, name: bytes) -> None:
        os.link(f"/proc/self/fd/{self._fd}", name, dst_dir_fd=self._parent, follow_symlinks=True)
