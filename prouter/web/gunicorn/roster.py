"""How many workers serve: gunicorn's own count, made of those that accept.

gunicorn counts a worker that drains like any other, and a reload is deaf to everything until the old workers have
ended. As long as a WebSocket kept one of them alive nobody would take its place, nor that of a worker that crashes
meanwhile; workers that are recycled at the same time would leave nobody to accept. Here workers that drain do not
count, and none has to go before those that take over accept.
"""

from __future__ import annotations

import signal
import time
from typing import Any

from prouter.web.gunicorn.balance import Standing, dismiss, serves, standing

__all__ = ["Roster"]

_DRAINING = 2
"""Workers that may drain for each that serves; while there are more, worn ones serve on."""


class Roster:
    """Takes the place of an arbiter's ``manage_workers`` and ``reload``; there is no setting for either.

    Args:
        arbiter: gunicorn's; its number of workers changes with TTIN, TTOU and HUP.
    """

    def __init__(self, arbiter: Any) -> None:
        self._arbiter = arbiter
        self._gunicorns_reload = arbiter.reload
        self._outdated = 0
        """Age of the youngest worker with settings from before the last reload."""

    def install(self) -> None:
        """Take their place."""
        self._arbiter.manage_workers = self.manage
        self._arbiter.reload = self.reload

    def reload(self) -> None:
        """As gunicorn does it, without waiting: `do_not_wait` is to be called from the hook ``on_reload``."""
        self._patience = self._arbiter.cfg.graceful_timeout
        try:
            self._gunicorns_reload()
        finally:
            self._arbiter.cfg.set("graceful_timeout", self._patience)

    def do_not_wait(self) -> None:
        """The new settings are read, the new workers not started: have gunicorn wait for nobody, for now."""
        self._outdated = self._arbiter.worker_age
        self._patience = self._arbiter.cfg.graceful_timeout
        self._arbiter.cfg.set("graceful_timeout", 0)

    def manage(self) -> None:
        """Start workers that are missing; once all serve, have the worn and the oldest ones go.

        Called once a second and after every signal.
        """
        arbiter = self._arbiter
        workers = sorted(arbiter.WORKERS.values(), key=lambda worker: worker.age)
        staying = [worker for worker in workers if standing(worker.age) < Standing.DISMISSED]
        room = max(0, _DRAINING * arbiter.num_workers - (len(workers) - len(staying)))
        worn = [worker for worker in staying if self._worn(worker)][:room]
        missing = arbiter.num_workers + len(worn) - len(staying)
        for _ in range(missing):
            arbiter.spawn_worker()
        if missing <= 0:
            fit = [worker for worker in staying if worker not in worn]
            self._dismiss((worn + fit)[: -arbiter.num_workers], (worn + fit)[-arbiter.num_workers :])

    def _worn(self, worker: Any) -> bool:
        """Whether somebody is to take the worker's place."""
        return worker.age <= self._outdated or standing(worker.age) is Standing.WORN

    def _dismiss(self, going: list[Any], remaining: list[Any]) -> None:
        now = time.monotonic()
        if not all(serves(worker.age, now) for worker in remaining):
            return
        for worker in going:
            dismiss(worker.age)
            self._arbiter.kill_worker(worker.pid, signal.SIGTERM)
