"""Stopping whole process trees that grow meanwhile, so that every process of a tree can be killed.

A stopped process cannot fork. But a process that gets SIGSTOP during a fork finishes the fork first, because only a
fatal signal interrupts fork(2). So the list of a process's children is final once /proc shows it stopped, and not
before. Standard library only: used by the keeper.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable

from prouter.processes.process_tree import (
    Process,
    children,
    environment_mark,
    limit_mark,
    mark_value,
    read_process,
    send,
    with_descendants,
)

__all__ = ["Halt", "end_marked"]

_SETTLE = 0.2
"""Seconds to wait until processes are stopped; one in uninterruptible sleep may take long."""
_STILL = "TtZXx"
"""States of processes that run no code, as in proc(5)."""


class Halt:
    """Stops processes and all their descendants, however fast they fork.

    Args:
        spared: keys of processes that were killed already. They cannot fork any more, so `run` does not wait for them.
        patience: seconds for which each `run` waits until /proc shows processes as stopped.

    Attributes:
        found: all processes that were found, zombies included, as they were then; parents before their children.
    """

    def __init__(self, spared: Iterable[tuple[int, int]] = (), *, patience: float = _SETTLE) -> None:
        self.found: dict[tuple[int, int], Process] = {}
        self._spared = frozenset(spared)
        self._patience = patience

    def run(self, roots: Iterable[int]) -> bool:
        """Stop these processes and their descendants; return whether a new one was found."""
        before = len(self.found)
        deadline = time.monotonic() + self._patience
        moving = self._stop(roots)
        while moving and time.monotonic() < deadline:
            still = [process for process in moving if _is_still(process)]
            if not still:
                time.sleep(0.0005)  # Not in a busy loop: the processes need the processor to stop.
                continue
            moving = [process for process in moving if process not in still]
            for process in still:
                moving += self._stop(children(process.pid))
        return len(self.found) > before

    def _stop(self, roots: Iterable[int]) -> list[Process]:
        """Send SIGSTOP to all that are not known yet; return those whose children must be listed again once stopped."""
        moving = []
        queue = list(roots)
        for pid in queue:
            process = read_process(pid)
            if process is None or process.key in self.found:
                continue
            self.found[process.key] = process
            if process.alive:
                send(process, signal.SIGSTOP)
                queue += children(pid)
                if process.key not in self._spared:
                    moving.append(process)
        return moving


def _is_still(process: Process) -> bool:
    now = read_process(process.pid)
    return now is None or now.start != process.start or now.state in _STILL


def end_marked(jobs: Iterable[str], *, patience: float) -> list[Process]:
    """Kill every process on the machine with the mark of one of these jobs, and all descendants of such.

    This ends what a dead keeper left behind. It blocks until the processes are gone, for at most `patience` seconds.

    Returns:
        The processes that are still there.
    """
    uids = set(jobs)
    marks = {mark_value(uid) for uid in uids}
    mine = os.getpid()

    def chosen(process: Process) -> bool:
        if process.pid == mine:
            return False
        return limit_mark(process.pid) in marks or environment_mark(process.pid) in uids

    deadline = time.monotonic() + patience
    while True:
        halt = Halt()
        while halt.run(process.pid for process in with_descendants(chosen) if process.pid != mine):
            if time.monotonic() > deadline:
                break
        left = [process for process in halt.found.values() if process.alive]
        if not left or time.monotonic() > deadline:
            return left
        for process in reversed(left):
            send(process, signal.SIGKILL)
        time.sleep(0.002)
