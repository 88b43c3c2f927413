"""Files that a job deleted from its sandbox but keeps open: they take space, but no walk finds them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["unlinked_bytes"]

_TMP = ("/tmp/", "/var/tmp/")  # noqa: S108 - as paths begin for such processes
_BLOCK_BYTES = 512  # st_blocks is in units of 512 bytes (stat(2)).


def unlinked_bytes(processes: Iterable[int], sandbox: Path, *, own_tmp: bool = False) -> int:
    """Return the allocated bytes of this sandbox's deleted files that these processes have open.

    Args:
        own_tmp: whether a directory of the sandbox is /tmp for these processes.

    Each file counts once. Files of another user's processes, which the agent cannot examine, do not count.
    """
    inside = f"{os.path.realpath(sandbox)}/"
    sizes: dict[tuple[int, int], int] = {}
    for path in _open_files(processes):
        try:
            found = os.stat(path)
            if found.st_nlink == 0 and stat.S_ISREG(found.st_mode):
                name = os.readlink(path)
                if name.startswith(inside) or (own_tmp and name.startswith(_TMP) and _same_disk(found, sandbox)):
                    sizes[found.st_dev, found.st_ino] = found.st_blocks * _BLOCK_BYTES
        except OSError:
            continue  # Closed meanwhile.
    return sum(sizes.values())


def _same_disk(found: os.stat_result, sandbox: Path) -> bool:
    return found.st_dev == os.stat(sandbox).st_dev


def _open_files(processes: Iterable[int]) -> Iterator[str]:
    for pid in processes:
        try:
            names = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for name in names:
            yield f"/proc/{pid}/fd/{name}"
