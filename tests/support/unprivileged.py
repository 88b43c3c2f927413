"""Execution of code as an ordinary user, whom permissions restrict; if root runs the tests, in a child process."""

from __future__ import annotations

import os
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["as_ordinary_user", "open_folder"]

_NOBODY = 65534


@contextmanager
def open_folder() -> Iterator[Path]:
    """Make a temporary directory in which every user may make files."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def as_ordinary_user(work: Callable[[], None]) -> None:
    """Run `work` in a process without privileges.

    Raises:
        AssertionError: it raised something; the text is its traceback.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(_NOBODY, _NOBODY, _NOBODY)
                os.setresuid(_NOBODY, _NOBODY, _NOBODY)
            work()
        except BaseException:
            os.write(write, traceback.format_exc().encode()[:60_000])
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        told = pipe.read().decode()
    os.waitpid(pid, 0)
    assert not told, told
