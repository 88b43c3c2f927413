"""Progress of transfers, told to the caller."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Counter", "Progress"]

Progress = Callable[[int, int | None], None]
"""Called with the bytes that were transferred so far, and with the bytes in all or None if that is not known.

After a loss the count may begin anew.
"""


class Counter:
    """Adds up bytes.

    Attributes:
        done: bytes so far.
    """

    def __init__(self, progress: Progress | None, total: int | None) -> None:
        self._progress = progress
        self._total = total
        self.done = 0

    def __call__(self, count: int) -> None:
        """Add bytes."""
        self.done += count
        if self._progress is not None:
            self._progress(self.done, self._total)

    def restart(self, done: int, total: int | None) -> None:
        """Continue at another count."""
        self.done = done
        self._total = total
