"""The directory of one job's keeper on its node, and those that killed jobs have left there.

It is on the node's own disk, because not all shared file systems have sockets and locks. A job that Slurm kills leaves
its directory; the next job of the same user on that node deletes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator

__all__ = ["remove_left", "state_directory"]

_NODE_LOCK, _KEEPER_LOCK = "node.lock", "keeper.lock"
"""Files that the job's processes lock while they live. A node's program that is killed early leaves only its own."""
_NAME = re.compile(r"prouter-[0-9a-f]{8}-[a-z0-9_]+", re.ASCII)


@contextlib.contextmanager
def state_directory(job: str) -> Iterator[str]:
    """Make a job's directory, and delete it at the end."""
    made = tempfile.mkdtemp(prefix=f"prouter-{job[:8]}-")
    # Locked before it gets its name, so that nobody takes the directory for one that was left.
    new = os.path.join(made, "new.lock")
    lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(new, os.path.join(made, _NODE_LOCK))
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def remove_left(parent: str) -> None:
    """Delete this user's directories whose job has ended without deleting them."""
    for name in os.listdir(parent):
        path = os.path.join(parent, name)
        if _NAME.fullmatch(name) and _is_own(path) and _is_left(path):
            shutil.rmtree(path, ignore_errors=True)


def _is_own(path: str) -> bool:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def _is_left(path: str) -> bool:
    """Whether no process of its job holds a lock there. A directory without the node's lock is just being made."""
    with contextlib.ExitStack() as opened:
        for name in (_NODE_LOCK, _KEEPER_LOCK):
            try:
                lock = os.open(os.path.join(path, name), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                opened.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except FileNotFoundError:
                if name == _NODE_LOCK:
                    return False
            except OSError:
                return False
    return True
