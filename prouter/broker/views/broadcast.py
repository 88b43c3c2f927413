"""Events to every worker, or to every agent, that is reachable."""

from __future__ import annotations

from typing import Any

from prouter.broker.base.env import Env
from prouter.broker.links.links import Links
from prouter.broker.links.workers import Workers
from prouter.fabric.calls import event_frame

__all__ = ["Broadcast"]


class Broadcast:
    """Sends one event to many peers. It is lost for those that are away: they hear the state when they are back."""

    def __init__(self, env: Env, workers: Workers, links: Links) -> None:
        self._env = env
        self._workers = workers
        self._links = links

    def workers(self, name: str, body: dict[str, Any]) -> None:
        """Send an event to every worker."""
        frame = event_frame(name, body)
        for worker in self._workers:
            if worker.path is not None:
                self._env.outbox.say(worker.path, frame)

    def agents(self, name: str, body: dict[str, Any]) -> None:
        """Send an event to every agent."""
        frame = event_frame(name, body)
        for link in self._links:
            if link.path is not None:
                self._env.outbox.say(link.path, frame)
