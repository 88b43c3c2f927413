"""Opening of a path that must stay beneath a directory, even if others create symbolic links meanwhile.

Two implementations with one contract:

- `open_with_openat2`: the kernel resolves the path (RESOLVE_BENEATH, Linux ≥ 5.6).
- `open_by_walking`: one ``O_NOFOLLOW`` open per name; links are read and followed by hand, ``..`` goes back to the
  descriptor the walk came from. No step lets the kernel resolve more than one name, so a directory that is swapped
  meanwhile never matters.

Symbolic links that stay beneath are followed. Both raise `OSError`: EXDEV if the path leaves, ELOOP for too many
links. Files are never created here: to create one, open its parent and create a single name in it.
"""

from __future__ import annotations

import errno
import os
import stat

from prouter.agent.sandbox import syscalls

__all__ = ["open_beneath", "open_by_walking", "open_with_openat2"]

_LINKS_MAX = 40  # as in the kernel: path_resolution(7)
_HELD_MAX = 64  # descriptors that the walk keeps for '..'
_PATH_MAX = 4096
_RETRIES = 16
_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW


def open_beneath(root: int, path: bytes, flags: int, root_path: bytes, *, openat2: bool) -> int:
    """Open an existing path beneath the directory `root`.

    Args:
        root: descriptor of the directory (O_PATH is enough).
        path: relative, ``/`` between names; empty means the directory itself.
        flags: of open(2), without O_CREAT. With O_NOFOLLOW a link as the last name is not followed.
        root_path: the directory's absolute path: an absolute link that leads to or below it counts as inside.
        openat2: whether to use the system call; the walk still handles what the call cannot: paths over PATH_MAX,
            absolute links, renames that keep racing.
    """
    if openat2 and len(path) < _PATH_MAX:
        fd = open_with_openat2(root, path, flags)
        if fd is not None:
            return fd
    return open_by_walking(root, path, flags, root_path)


def open_with_openat2(root: int, path: bytes, flags: int) -> int | None:
    """Return the descriptor, or None if the walk has to decide (the path left the root, or raced too often)."""
    resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_MAGICLINKS
    for _ in range(_RETRIES):
        try:
            return syscalls.openat2(root, path or b".", flags, resolve)
        except OSError as error:
            if error.errno == errno.EXDEV:
                return None
            if error.errno not in (errno.EAGAIN, errno.EINTR):
                raise
    return None


def open_by_walking(root: int, path: bytes, flags: int, root_path: bytes) -> int:
    """Open a path as `open_beneath` does, name by name."""
    walk = _Walk(root, root_path)
    try:
        return walk.open(path, flags)
    finally:
        walk.close()


class _Walk:
    """One resolution: the remaining names, and the directories entered so far, deepest last."""

    def __init__(self, root: int, root_path: bytes) -> None:
        self._root = root
        self._root_path = root_path.rstrip(b"/")
        self._held: list[int] = []
        self._forgotten = False
        self._todo: list[bytes] = []
        self._links = 0

    def close(self) -> None:
        for fd in self._held:
            os.close(fd)
        self._held.clear()

    def open(self, path: bytes, flags: int) -> int:
        self._push(path)
        while self._todo:
            name = self._todo.pop()
            if name == b"..":
                self._back()
            elif self._todo:
                self._enter(name)
            else:
                fd = self._last(name, flags)
                if fd is not None:
                    return fd
        return os.open(b".", flags & ~os.O_NOFOLLOW, dir_fd=self._here())

    def _here(self) -> int:
        return self._held[-1] if self._held else self._root

    def _push(self, path: bytes) -> None:
        names = [name for name in path.split(b"/") if name not in (b"", b".")]
        if path.endswith(b"/") and names:
            names.append(b".")  # a trailing slash requires a directory; the kernel checks that
        self._todo.extend(reversed(names))

    def _back(self) -> None:
        if not self._held:
            raise OSError(errno.ELOOP if self._forgotten else errno.EXDEV, "the path leaves its root")
        os.close(self._held.pop())

    def _enter(self, name: bytes) -> None:
        try:
            fd = os.open(name, _STEP, dir_fd=self._here())
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP) or not self._follow(name):
                raise
            return
        self._held.append(fd)
        if len(self._held) > _HELD_MAX:
            os.close(self._held.pop(0))
            self._forgotten = True

    def _last(self, name: bytes, flags: int) -> int | None:
        """Open the last name and return its descriptor, or None if it was a link whose target is now to be walked."""
        here = self._here()
        try:
            fd = os.open(name, flags | os.O_NOFOLLOW, dir_fd=here)
        except OSError as error:
            if flags & os.O_NOFOLLOW or error.errno not in (errno.ENOTDIR, errno.ELOOP) or not self._follow(name):
                raise
            return None
        if flags & os.O_NOFOLLOW or not flags & os.O_PATH or not stat.S_ISLNK(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        if not self._follow(name):
            self._todo.append(name)  # it was a link a moment ago: try again, as often as links may be followed
        return None

    def _follow(self, name: bytes) -> bool:
        """Put the target of the link `name` before the remaining names; False if it is not, or no longer, a link."""
        self._links += 1
        if self._links > _LINKS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        try:
            target = os.readlink(name, dir_fd=self._here())
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        if target.startswith(b"/"):
            if target != self._root_path and not target.startswith(self._root_path + b"/"):
                raise OSError(errno.EXDEV, "the link leaves its root")
            target = target[len(self._root_path) :]
            self.close()
            self._forgotten = False
        self._push(target)
        return True
