"""How many workers serve: gunicorn's own count, made of those that accept connections.

gunicorn counts a draining worker like any other, and during a reload it handles no signal until the old workers have
ended. So while a WebSocket kept one of them alive, nobody would replace it, nor a worker that crashed meanwhile, and
workers that reached ``control.max_requests`` at once would leave nobody to accept. Here draining workers do not count,
and a worker has to go only after its successor accepts.
"""

from __future__ import annotations

import time

from prouter.web.gunicorn.balance import Standing, replace, serves, standing
from prouter.web.gunicorn.internals import ArbiterAdapter, GunicornWorker

__all__ = ["Roster"]

_DRAINING = 2
"""Workers that may drain for each that serves; while there are more, those that are due serve on."""


class Roster:
    """Keeps the number of serving workers in place of gunicorn's ``manage_workers``.

    Args:
        arbiter: gunicorn's parent process.
    """

    def __init__(self, arbiter: ArbiterAdapter) -> None:
        self._arbiter = arbiter
        self._outdated = 0
        """Age number of the youngest worker with settings from before the last reload."""

    def install(self) -> None:
        """Take the place of ``manage_workers``."""
        self._arbiter.manage_with(self.manage)

    def reloaded(self) -> None:
        """Have all workers that run now replaced, without a wait. To be called from the hook ``on_reload``."""
        self._outdated = self._arbiter.youngest
        self._arbiter.do_not_wait()

    def manage(self) -> None:
        """Start missing workers; once all serve, stop those that are due and those beyond the number wanted."""
        arbiter = self._arbiter
        workers, wanted = arbiter.workers, arbiter.wanted
        staying = [worker for worker in workers if standing(worker.age) < Standing.REPLACED]
        may_drain = max(0, _DRAINING * wanted - (len(workers) - len(staying)))
        due = [worker for worker in staying if self._due(worker)][:may_drain]
        missing = wanted + len(due) - len(staying)
        for _ in range(missing):
            arbiter.spawn()
        if missing <= 0:
            others = [worker for worker in staying if worker not in due]
            self._stop((due + others)[:-wanted], (due + others)[-wanted:])

    def _due(self, worker: GunicornWorker) -> bool:
        """Whether the worker is to be replaced."""
        return worker.age <= self._outdated or standing(worker.age) is Standing.DUE

    def _stop(self, leaving: list[GunicornWorker], remaining: list[GunicornWorker]) -> None:
        """Stop workers if all that remain serve."""
        now = time.monotonic()
        if not all(serves(worker.age, now) for worker in remaining):
            return
        for worker in leaving:
            replace(worker.age)
            self._arbiter.stop(worker)
