"""Sandbox paths of requests: splitting into names, display, and errors.

A path is bytes, percent-decoded once, relative to the sandbox. Every name that a Linux file system can hold is allowed.
Anything else (``..``, an absolute path, NUL) is refused before a system call sees it.
"""

from __future__ import annotations

import errno
import os
import secrets
from typing import Literal, final
from urllib.parse import quote_from_bytes

from prouter.errors import Conflict, Forbidden, InvalidRequest, NoSpace, NotFound, Overloaded, PRouterError, TooLarge
from prouter.texts import visible

__all__ = ["hidden_name", "href", "refusal", "shown", "split", "text", "translated"]

_NAME_MAX = 255  # bytes (limits.h)
_SHOWN_MAX = 200  # characters of a path in an error text


def split(path: bytes, *, root_allowed: bool = False) -> tuple[bytes, ...]:
    """Split a relative path into names; empty and ``.`` components are dropped, as in POSIX.

    Args:
        path: percent-decoded bytes.
        root_allowed: whether the path may be the sandbox itself (no name at all).

    Raises:
        Forbidden: an absolute path, or one with ``..``.
        InvalidRequest: a NUL byte, a name over 255 bytes, or no name where one is needed.
    """
    if b"\0" in path:
        raise InvalidRequest(f"Invalid request: path '{shown(path)}' holds a NUL byte")
    if path.startswith(b"/"):
        raise Forbidden(f"path '{shown(path)}' is absolute; paths are relative to the sandbox")
    parts = tuple(part for part in path.split(b"/") if part not in (b"", b"."))
    if b".." in parts:
        raise Forbidden(f"path '{shown(path)}' may leave the sandbox: '..' is not allowed")
    if not parts and not root_allowed:
        raise InvalidRequest("Invalid request: the path names no file; give its name in the sandbox after /file/")
    if any(len(part) > _NAME_MAX for part in parts):
        raise InvalidRequest(f"Invalid request: path '{shown(path)}' has a name of more than {_NAME_MAX} bytes")
    return parts


def hidden_name() -> bytes:
    """Return a unique hidden name for a file that temporarily has none of its own."""
    return b".prouter-%s.part" % secrets.token_hex(8).encode()


def shown(path: bytes) -> str:
    """Return the path for an error text or a log line: one line, printable, at most 200 characters."""
    plain = visible(path[:1024].decode("utf-8", "backslashreplace"))
    return plain if len(plain) <= _SHOWN_MAX else plain[: _SHOWN_MAX - 1] + "…"


def text(name: bytes) -> str:
    """Return the name as a str; bytes that are not UTF-8 become surrogates (PEP 383), whatever the locale."""
    return name.decode("utf-8", "surrogateescape")


def href(name: bytes) -> str:
    """Return the name as one percent-encoded path segment (RFC 3986), which decodes to the same bytes."""
    return quote_from_bytes(name, safe="")


_READING: dict[int, tuple[type[PRouterError], str]] = {
    errno.ENOENT: (NotFound, "file '{}' is not found"),
    errno.ENOTDIR: (NotFound, "file '{}' is not found: a part of its path is not a directory"),
    errno.EXDEV: (Forbidden, "path '{}' leaves the sandbox"),
    errno.ELOOP: (Forbidden, "path '{}' leads through too many symbolic links"),
    errno.ENAMETOOLONG: (InvalidRequest, "Invalid request: path '{}' has a name that is too long"),
    errno.EINVAL: (InvalidRequest, "Invalid request: the file system cannot hold the name '{}'"),
    errno.EILSEQ: (InvalidRequest, "Invalid request: the file system cannot hold the name '{}'"),
    errno.EACCES: (Forbidden, "no permission for '{}'"),
    errno.EPERM: (Forbidden, "the system does not permit this for '{}'"),
    errno.EROFS: (Forbidden, "'{}' is on a read-only file system"),
    errno.ENOSPC: (NoSpace, "no space left on the agent's disk for '{}'"),
    errno.EDQUOT: (NoSpace, "the disk quota on the agent is used up for '{}'"),
    errno.EFBIG: (TooLarge, "'{}' is larger than the agent's file system or limits allow"),
    errno.EEXIST: (Conflict, "'{}' exists already"),
    errno.EISDIR: (Conflict, "'{}' is a directory"),
    errno.ENOTEMPTY: (Conflict, "directory '{}' is not empty"),
    errno.EBUSY: (Conflict, "'{}' is in use"),
    errno.EAGAIN: (Conflict, "'{}' is in use"),
    errno.EMFILE: (Overloaded, "the agent has no file descriptor left for '{}'"),
    errno.ENFILE: (Overloaded, "the agent's machine has no file descriptor left for '{}'"),
    errno.ENOMEM: (Overloaded, "the agent's machine has no memory left for '{}'"),
}
_WRITING: dict[int, tuple[type[PRouterError], str]] = {
    **_READING,
    errno.ENOENT: (Conflict, "the directory of '{}' was removed meanwhile, or is a link that leads nowhere"),
    errno.ENOTDIR: (Conflict, "a part of the path '{}' exists and is not a directory"),
}


def refusal(error: OSError, path: bytes, *, writing: bool = False) -> PRouterError:
    """Return the `PRouterError` for an error of the operating system about this path."""
    known = (_WRITING if writing else _READING).get(error.errno or 0)
    if known is None:
        return PRouterError(f"'{shown(path)}' failed on the agent: {os.strerror(error.errno or 0)}")
    kind, sentence = known
    return kind(sentence.format(shown(path)))


@final
class translated:
    """Context manager that turns an `OSError` into a `PRouterError`; a class, because every file passes through it."""

    __slots__ = ("_path", "_writing")

    def __init__(self, path: bytes, *, writing: bool = False) -> None:
        self._path = path
        self._writing = writing

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> Literal[False]:
        if isinstance(error, OSError):
            raise refusal(error, self._path, writing=self._writing) from error
        return False
