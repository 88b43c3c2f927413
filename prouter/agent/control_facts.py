"""What the agent's control API tells: the agent, its links and its jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prouter.agent.jobs.manager import JobManager
from prouter.agent.links.identity import Identity
from prouter.agent.links.links import Links
from prouter.jobs import JobRecord

__all__ = ["ControlFacts"]


class ControlFacts:
    """The answers of the control API.

    Args:
        identity: gives the agent's identity, which is known once the agent is open.
    """

    def __init__(self, identity: Callable[[], Identity], links: Links, manager: JobManager) -> None:
        self._identity = identity
        self._links = links
        self._manager = manager

    def info(self) -> dict[str, Any]:
        """The agent."""
        identity = self._identity()
        return {"auth": identity.auth, "platform": identity.platform, "properties": identity.properties}

    def connections(self) -> dict[str, Any]:
        """The links to routers."""
        return {"connections": [link.describe() for link in self._links]}

    def jobs(self) -> dict[str, Any]:
        """The jobs that routers know of."""
        senders = {link.connection: link.describe() for link in self._links}
        return {"jobs": [self._job(record, senders.get(record.connection)) for record in self._manager.records()]}

    def _job(self, record: JobRecord, sender: dict[str, Any] | None) -> dict[str, Any]:
        """A job as the agent of the original pRouter lists it, without the sender's token."""
        auth = sender["peer"]["auth"] if sender is not None else {"uid": None, "name": None}
        direction = sender["mode"] if sender is not None else None
        endpoint = record.endpoint or {}
        return {
            "uid": record.uid,
            "name": record.name,
            "sandbox": str(self._manager.sandbox(record.uid).root),
            "sender": {"direction": direction, "connection": record.connection, **auth},
            "port": endpoint.get("port"),
            "state": record.state.value,
        }
