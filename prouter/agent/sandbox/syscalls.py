"""Linux system calls that the standard library does not offer: openat2, hole punching, write-back and inotify.

Each function is a thin call: it returns what the kernel returns and raises `OSError` with the kernel's errno.
Sources: openat2(2), fallocate(2), sync_file_range(2), syncfs(2), inotify(7).
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os

__all__ = [
    "IN_MODIFY",
    "IN_Q_OVERFLOW",
    "RESOLVE_BENEATH",
    "RESOLVE_NO_MAGICLINKS",
    "RESOLVE_NO_SYMLINKS",
    "RESOLVE_NO_XDEV",
    "have_openat2",
    "inotify_add_watch",
    "inotify_init",
    "inotify_rm_watch",
    "openat2",
    "punch_hole",
    "start_writeback",
    "syncfs",
]

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08

IN_MODIFY = 0x002
IN_Q_OVERFLOW = 0x4000

_SYS_OPENAT2 = 437  # the same number on every architecture
_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02
_SYNC_FILE_RANGE_WRITE = 0x02

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    """struct open_how of <linux/openat2.h>."""

    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def _raise(path: bytes | None = None) -> None:
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code), path)


def openat2(directory: int, path: bytes, flags: int, resolve: int) -> int:
    """Open an existing `path` relative to `directory`, resolved by the RESOLVE_* bits of `resolve`.

    Raises:
        OSError: EXDEV if the path would leave what `resolve` allows; EAGAIN if a rename raced with a ``..``.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    number, size = ctypes.c_long(_SYS_OPENAT2), ctypes.c_size_t(ctypes.sizeof(how))
    fd = int(_libc.syscall(number, ctypes.c_int(directory), ctypes.c_char_p(path), ctypes.byref(how), size))
    if fd < 0:
        _raise(path)
    return fd


@functools.cache
def have_openat2() -> bool:
    """Return whether kernel and seccomp filter let this process call openat2 (old container runtimes answer EPERM)."""
    try:
        fd = openat2(-100, b"/", os.O_PATH | os.O_DIRECTORY, RESOLVE_NO_MAGICLINKS)  # -100: AT_FDCWD
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            return False
        raise
    os.close(fd)
    return True


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Return the blocks of `length` bytes at `offset` to the file system; the file's size stays.

    Raises:
        OSError: EOPNOTSUPP if the file system has no holes.
    """
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    if _libc.fallocate(ctypes.c_int(fd), ctypes.c_int(mode), ctypes.c_long(offset), ctypes.c_long(length)) < 0:
        _raise()


def start_writeback(fd: int, offset: int, length: int) -> None:
    """Ask the kernel to begin writing these dirty pages to disk, without waiting. A hint: errors surface in fsync."""
    flags = ctypes.c_uint(_SYNC_FILE_RANGE_WRITE)
    _libc.sync_file_range(ctypes.c_int(fd), ctypes.c_long(offset), ctypes.c_long(length), flags)


def syncfs(fd: int) -> None:
    """Sync everything that was written to the file system of `fd` to disk.

    Raises:
        OSError: some of it could not be written.
    """
    if _libc.syncfs(ctypes.c_int(fd)) < 0:
        _raise()


def inotify_init() -> int:
    """Return a new inotify descriptor, non-blocking and close-on-exec."""
    fd = int(_libc.inotify_init1(ctypes.c_int(os.O_NONBLOCK | os.O_CLOEXEC)))
    if fd < 0:
        _raise()
    return fd


def inotify_add_watch(inotify: int, path: bytes, mask: int) -> int:
    """Watch the file behind `path`; the same file (inode) always gets the same watch number."""
    watch = int(_libc.inotify_add_watch(ctypes.c_int(inotify), ctypes.c_char_p(path), ctypes.c_uint32(mask)))
    if watch < 0:
        _raise(path)
    return watch


def inotify_rm_watch(inotify: int, watch: int) -> None:
    """End a watch. One that ended with its file is ignored."""
    if _libc.inotify_rm_watch(ctypes.c_int(inotify), ctypes.c_int(watch)) < 0 and ctypes.get_errno() != errno.EINVAL:
        _raise()
