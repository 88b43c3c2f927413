"""Files that a job deleted from its sandbox but keeps open: they take space, and no walk of the sandbox finds them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["unlinked_bytes"]

_BLOCK_BYTES = 512  # st_blocks is in units of 512 bytes (stat(2)).


def unlinked_bytes(processes: Iterable[int], sandbox: Path) -> int:
    """Allocated bytes of the files of this sandbox that have no name any more and are open in these processes.

    Each counts once. What is not ours to look at, a process of another user, counts nothing.
    """
    inside = f"{os.path.realpath(sandbox)}/"
    sizes: dict[tuple[int, int], int] = {}
    for path in _open_files(processes):
        try:
            found = os.stat(path)
            if found.st_nlink == 0 and stat.S_ISREG(found.st_mode) and os.readlink(path).startswith(inside):
                sizes[found.st_dev, found.st_ino] = found.st_blocks * _BLOCK_BYTES
        except OSError:
            continue  # Closed meanwhile.
    return sum(sizes.values())


def _open_files(processes: Iterable[int]) -> Iterator[str]:
    for pid in processes:
        try:
            names = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for name in names:
            yield f"/proc/{pid}/fd/{name}"
