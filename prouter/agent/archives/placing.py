"""How an archive member gets its name in a directory, and whether a link's target stays beneath the sandbox.

Both work on open directories and single names, so nothing here can be led astray by a link.
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
    """Raise IsADirectoryError when `name` is a directory, which no file or link replaces."""
    if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


def place(make: Callable[[bytes], None], name: bytes, parent: int) -> None:
    """Let `make` create `name` in the directory `parent`, in place of a file or link that is there.

    Raises:
        OSError: EISDIR when a directory has the name, and whatever `make` raises.
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
    """Whether a symbolic link in the directory `parent` with this target leads out of the directory `root`.

    It is followed name by name from where it really is. As long as its names are real directories, ``..`` is exact;
    after a name that is missing or a link, a ``..`` might mean anything later on, and counts as leaving. So a link that
    is let through stays inside whatever links are made after it.

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
    """Set permission bits and time of exactly the open file or directory (O_PATH will do, so it goes through /proc)."""
    path = f"/proc/self/fd/{found}"
    if mode is not None:
        os.chmod(path, mode & 0o777)
    if mtime_ns is not None:
        os.utime(path, ns=(mtime_ns, mtime_ns))
