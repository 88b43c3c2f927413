"""Which agents are linked to the broker, as a worker knows it from the broker's events."""

from __future__ import annotations

from typing import Any

from prouter.transport.peer import Peer

__all__ = ["AgentLinks"]


class AgentLinks:
    """The agents' links, and what their state means for the streams to them.

    Args:
        peer: the worker's connection to the broker, whose streams wait for an agent's return or end with it.
    """

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._up: dict[str, bool] = {}
        """Connections of agents, and whether they are up."""
        self._processes: dict[str, str] = {}
        """The process of each agent that was up last."""
        self._far: set[str] = set()
        """Connections of agents with a long round trip."""
        self._arriving: list[dict[str, Any]] = []
        """The parts so far of the broker's list of links."""

    def __contains__(self, connection: str) -> bool:
        return connection in self._up

    def __len__(self) -> int:
        return len(self._up)

    def is_up(self, connection: str) -> bool:
        """Return whether an agent can be reached."""
        return self._up.get(connection, False)

    def is_far(self, connection: str) -> bool:
        """Return whether an agent has a long round trip."""
        return connection in self._far

    def expect_list(self) -> None:
        """Prepare for the broker's list of links, which follows its welcome."""
        self._arriving.clear()

    def take_list(self, body: dict[str, Any]) -> bool:
        """Take a part of the broker's list of links, and return whether it was the last one.

        Args:
            body: ``links``, ``last``, and ``complete``: whether the broker has been up for long enough that an agent
                that is not on the list is lost.
        """
        self._arriving += body["links"]
        if not body["last"]:
            return False
        links, self._arriving = self._arriving, []
        self._up = {link["connection"]: bool(link["up"]) for link in links}
        for link in links:
            self._meet(link)
        for connection, up in self._up.items():
            if up:
                self._peer.route_up(connection.encode("ascii"), self._processes[connection])
        if body["complete"]:
            self.drop_others()
        return True

    def drop_others(self) -> None:
        """End the streams to agents that are not linked: they were lost while the broker was away."""
        present = {connection.encode("ascii") for connection in self._up}
        self._far.intersection_update(self._up)
        self._processes = {key: process for key, process in self._processes.items() if key in self._up}
        self._peer.keep_routes(present, "agent_gone", "the agent is no longer linked")

    def linked(self, link: dict[str, Any]) -> None:
        """Apply that an agent linked."""
        connection = str(link["connection"])
        self._meet(link)
        self._up[connection] = True
        self._peer.route_up(connection.encode("ascii"), self._processes[connection])

    def down(self, body: dict[str, Any]) -> None:
        """Apply that an agent is away, stops or does not return.

        Args:
            body: ``connection``; ``gone``: its streams end; ``leaving``: they go on until it has stopped. Otherwise
                they wait.
        """
        connection = str(body["connection"])
        if body.get("gone"):
            self._removed(connection)
            return
        self._up[connection] = False
        if not body.get("leaving"):
            self._peer.route_down(connection.encode("ascii"))

    def _removed(self, connection: str) -> None:
        self._up.pop(connection, None)
        self._far.discard(connection)
        self._processes.pop(connection, None)
        self._peer.route_gone(connection.encode("ascii"), "agent_gone", "the agent is no longer linked")

    def measured(self, connection: str, *, far: bool) -> None:
        """Apply a new measurement of an agent's round trip."""
        if far:
            self._far.add(connection)
        else:
            self._far.discard(connection)

    def _meet(self, link: dict[str, Any]) -> None:
        """End the streams to an agent that was restarted: resumed in a new process they would repeat requests."""
        connection, process = str(link["connection"]), str(link.get("process") or "")
        if link["up"] and self._processes.setdefault(connection, process) != process:
            self._processes[connection] = process
            self._peer.route_gone(connection.encode("ascii"), "agent_gone", "the agent was restarted")
        self.measured(connection, far=bool(link.get("far")))
