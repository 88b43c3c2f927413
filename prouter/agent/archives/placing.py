"""Names for archive members, and the check that a link's target stays beneath the sandbox.

Both work on open directories and single names, so no link can redirect them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable

from prouter.agent.sandbox.paths import hidden_name
from prouter.agent.sandbox.sandbox import OPEN_DIRECTORY

__all__ = ["leaves", "place", "refuse_directory", "set_attributes"]


def refuse_directory(name: bytes, parent: int) -> None:
    """Raise IsADirectoryError if `name` is a directory, which no file or link may replace."""
    if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


def place(make: Callable[[bytes], None], name: bytes, parent: int) -> None:
    """Let `make` create `name` in the directory `parent`, replacing an existing file or link.

    Raises:
        OSError: EISDIR if a directory has the name, and whatever `make` raises.
    """
    try:
        make(name)
        return
    except FileExistsError:
        refuse_directory(name, parent)
    hidden = hidden_name()
    make(hidden)
    try:
        os.replace(hidden, name, src_dir_fd=parent, dst_dir_fd=parent)
    finally:
        with contextlib.suppress(FileNotFoundError):  # rename(2) leaves it when both names are the same file already
            os.unlink(hidden, dir_fd=parent)


def leaves(root: tuple[int, int], parent: int, target: bytes) -> bool:
    """Return whether a symbolic link in the directory `parent` with this target leads out of the directory `root`.

    The target is followed name by name from the link's real place. As long as its names are real directories, ``..`` is
    exact. After a missing name or a link, a ``..`` could mean anything later on, and counts as leaving. So an accepted
    link stays inside, whatever links are created after it.

    Args:
        root: device and inode of the directory to stay in.
    """
    if target.startswith(b"/"):
        return True
    here = os.dup(parent)
    known = True
    try:
        for name in target.split(b"/"):
            if name in (b"", b"."):
                continue
            if name == b".." and (not known or _identity(here) == root):
                return True
            if known:
                try:
                    below = os.open(name, OPEN_DIRECTORY, dir_fd=here)
                except OSError:
                    known = False
                else:
                    os.close(here)
                    here = below
        return False
    finally:
        os.close(here)


def _identity(directory: int) -> tuple[int, int]:
    info = os.fstat(directory)
    return info.st_dev, info.st_ino


def set_attributes(found: int, mode: int | None, mtime_ns: int | None) -> None:
    """Set permission bits and time of exactly this open file or directory (through /proc, because it may be O_PATH)."""
    path = f"/proc/self/fd/{found}"
    if mode is not None:
        os.chmod(path, mode & 0o777)
    if mtime_ns is not None:
        os.utime(path, ns=(mtime_ns, mtime_ns))
