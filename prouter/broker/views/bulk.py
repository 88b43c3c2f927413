"""The number of fast streams of each worker, told to the others, with which it shares the bandwidth of agents."""

from __future__ import annotations

from typing import Any

from prouter.broker.base.env import Env
from prouter.broker.links.workers import Worker, Workers
from prouter.errors import ProtocolError
from prouter.fabric.calls import event_frame

__all__ = ["BulkCounts"]


class BulkCounts:
    """What each worker said of its own; see `prouter.fabric.windows`."""

    def __init__(self, env: Env, workers: Workers) -> None:
        self._env = env
        self._workers = workers

    def told(self, worker: Worker, body: dict[str, Any]) -> None:
        """Take the number of a worker's fast streams.

        Raises:
            ProtocolError: that is no number.
        """
        streams = body.get("streams")
        if type(streams) is not int or streams < 0:
            raise ProtocolError("streams must be a number")
        worker.bulk = streams
        self.tell()

    def tell(self) -> None:
        """Tell each worker how many fast streams the others have, if that has changed."""
        total = sum(worker.bulk for worker in self._workers)
        for worker in self._workers:
            elsewhere = total - worker.bulk
            if worker.path is not None and worker.bulk_elsewhere != elsewhere:
                worker.bulk_elsewhere = elsewhere
                self._env.outbox.say(worker.path, event_frame("bulk", {"elsewhere": elsewhere}))
