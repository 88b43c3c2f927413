"""Notes on a terminal about a start that waits in the queue of its agent's cluster."""

from __future__ import annotations

import sys
import threading

from prouter.cli.remote.failures import note
from prouter.client import Job, RouterError

__all__ = ["QueueNotes"]

_PAUSE = 2.0
"""Seconds between looks."""


class QueueNotes:
    """Within its ``with`` block, says why the job waits, and again when that changes; only if stderr is a terminal.

    Args:
        job: whose start is under way.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._over = threading.Event()

    def __enter__(self) -> None:
        if sys.stderr.isatty():
            threading.Thread(target=self._look, name="queue notes", daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _look(self) -> None:
        told = None
        while not self._over.wait(_PAUSE):
            try:
                info = self._job.info()
            except RouterError:
                continue  # Whoever waits for the start is told of it.
            reason = (info.queue or {}).get("reason")
            if info.phase == "queued" and reason and reason != told and not self._over.is_set():
                told = reason
                note(f"the job waits in its cluster's queue: {reason}")
