"""Peak memory of processes since a moment, as the kernel counts it (proc(5), VmHWM and clear_refs)."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

__all__ = ["PeakMemory", "descendants"]

_GONE = (FileNotFoundError, ProcessLookupError)
"""Errors for processes that have ended."""


def descendants(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(*_GONE):
            for child in (task / "children").read_text().split():
                with suppress(*_GONE):
                    found += descendants(int(child))
    return found


class PeakMemory:
    """Measures from its creation; `growth` is how many bytes each process had at most beyond those it had then."""

    def __init__(self, pids: list[int]) -> None:
        self._before: dict[int, int] = {}
        for pid in pids:
            with suppress(*_GONE):
                Path(f"/proc/{pid}/clear_refs").write_text("5")
                self._before[pid] = _peak(pid)

    def growth(self) -> dict[int, int]:
        grown = {}
        for pid, before in self._before.items():
            with suppress(*_GONE):
                grown[pid] = _peak(pid) - before
        return grown


def _peak(pid: int) -> int:
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if found is None:
        raise ProcessLookupError(pid)  # it has ended, and its parent has not looked yet
    return int(found[1]) * 1024
