"""What the program on the node tells people: lines of the batch script's output, which is ``batch.log``."""

from __future__ import annotations

import contextlib
import os

__all__ = ["note"]


def note(text: str) -> None:
    """Write a line, or nothing if the file system is full: a job must not fail because of its log."""
    # Not print(): what it could not write, Python writes again at its exit, and fails then.
    with contextlib.suppress(OSError):
        os.write(1, f"{text}\n".encode("utf-8", "backslashreplace"))
