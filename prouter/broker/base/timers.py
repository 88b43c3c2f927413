"""Timers: a heap of callbacks by their time. The event loop runs those that are due."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable

__all__ = ["Timer", "Timers"]

Action = Callable[[float], None]


class Timer:
    """A scheduled action, which `cancel` drops."""

    __slots__ = ("_timers", "action", "at", "queued")

    def __init__(self, timers: Timers, at: float, action: Action) -> None:
        self._timers = timers
        self.at = at
        self.action: Action | None = action
        self.queued = True

    def cancel(self) -> None:
        """Drop the action. Idempotent, also after it has run."""
        if self.action is not None:
            self.action = None
            if self.queued:
                self._timers._cancelled()


class Timers:
    """All timers of a broker. Times are seconds of the caller's monotonic clock."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._count = 0
        self._dead = 0

    def __len__(self) -> int:
        return len(self._heap) - self._dead

    def at(self, when: float, action: Action) -> Timer:
        """Run ``action(now)`` at `when` or soon after."""
        timer = Timer(self, when, action)
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, timer))
        return timer

    def deadline(self) -> float | None:
        """When the next timer is due; None without timers."""
        heap = self._heap
        while heap and heap[0][2].action is None:
            heapq.heappop(heap)
            self._dead -= 1
        return heap[0][0] if heap else None

    def run(self, now: float, most: int = sys.maxsize) -> None:
        """Run the actions that are due, in the order of their times, without those scheduled meanwhile.

        An exception of an action goes to the caller; the actions after it stay due.

        Args:
            most: run at most so many.
        """
        heap = self._heap
        due: list[Timer] = []
        while heap and heap[0][0] <= now and len(due) < most:
            timer = heapq.heappop(heap)[2]
            timer.queued = False
            if timer.action is None:
                self._dead -= 1
            else:
                due.append(timer)
        due.reverse()
        try:
            while due:
                timer = due.pop()
                action, timer.action = timer.action, None
                if action is not None:
                    action(now)
        finally:
            for timer in reversed(due):
                if timer.action is not None:
                    timer.queued = True
                    self._count += 1
                    heapq.heappush(self._heap, (timer.at, self._count, timer))

    def _cancelled(self) -> None:
        self._dead += 1
        if self._dead > 64 and self._dead * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].action is not None]
            heapq.heapify(self._heap)
            self._dead = 0
