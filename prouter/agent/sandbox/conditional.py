"""Comparison of what is at a path with the conditions of a request that is about to change it."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from prouter.agent.sandbox.sandbox import Sandbox
from prouter.conditions import Conditions
from prouter.keeper.log_gaps import LOG_FILES

__all__ = ["check_directory", "check_file", "etag_of"]

_PATH_ONLY = os.O_PATH | os.O_CLOEXEC


def etag_of(info: os.stat_result) -> str:
    """Return a strong entity tag with quotes (RFC 9110, 8.8.3); each write that the clock can tell apart changes it."""
    return f'"{info.st_dev:x}-{info.st_ino:x}-{info.st_mtime_ns:x}-{info.st_size:x}"'


def _look(sandbox: Sandbox, parts: Sequence[bytes]) -> os.stat_result | None:
    """Return what a GET would find, following links that stay inside; a dangling link itself; None for nothing."""
    if len(parts) == 1 and sandbox.logs.listed(parts[0]):
        log = sandbox.logs.open(LOG_FILES[parts[0]])
        try:
            return os.fstat(log)
        finally:
            os.close(log)
    for flags in (_PATH_ONLY, _PATH_ONLY | os.O_NOFOLLOW):
        try:
            fd = sandbox.open(parts, flags)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            if flags & os.O_NOFOLLOW:
                raise
            continue  # it leads out of the sandbox, or into a loop
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)
    return None


def check_file(sandbox: Sandbox, parts: Sequence[bytes], conditions: Conditions) -> None:
    """Compare with what is at `parts`. A directory is left to the caller, who may not replace it (RFC 9110 13.2.1).

    Raises:
        PreconditionFailed: a condition does not hold.
        OSError: it cannot be looked at.
    """
    info = _look(sandbox, parts)
    if info is None:
        conditions.check(exists=False)
    elif stat.S_ISREG(info.st_mode):
        conditions.check(exists=True, etag=etag_of(info), mtime=info.st_mtime)
    elif not stat.S_ISDIR(info.st_mode):
        conditions.check(exists=True)


def check_directory(sandbox: Sandbox, parts: Sequence[bytes], conditions: Conditions) -> None:
    """Compare with the directory at `parts`, which has no entity tag. Something else there is left to the caller.

    Raises:
        PreconditionFailed: a condition does not hold.
        OSError: it cannot be looked at.
    """
    info = _look(sandbox, parts)
    if info is None or stat.S_ISDIR(info.st_mode):
        conditions.check(exists=info is not None)
