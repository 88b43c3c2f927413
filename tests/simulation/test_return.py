"""Many agents and a router that is away: they do not hammer it, and all are linked soon after its return.

Virtual time; the broker's core, the agents' `Peer` and `Backoff` are the real ones, with the delays of the default
configuration.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from prouter.config.agent import AgentClient
from prouter.fabric.stream import Stream
from prouter.transport.peer import Peer
from tests.simulation.nodes import AgentNode
from tests.simulation.router import BrokerNode
from tests.simulation.world import World

_AGENTS = 2_000
_CLIENT = AgentClient()


class _Agent(AgentNode):
    """An agent without jobs, which notes when it dials and when it is linked."""

    delays = (_CLIENT.reconnect_delay, _CLIENT.longest_reconnect_delay)

    def __init__(self, herd: Herd, number: int) -> None:
        self.herd = herd
        super().__init__(herd.world, herd.broker, f"agent-{number}", [], _serve_nothing)

    def _dial(self) -> None:
        self.herd.dialled.append(self.world.now)
        super()._dial()

    def on_ready(self, peer: Peer, body: dict[str, Any]) -> None:
        self.herd.linked.append(self.world.now)
        super().on_ready(peer, body)


def _serve_nothing(agent: AgentNode, stream: Stream, target: dict[str, Any]) -> None:
    raise AssertionError("nobody opens streams")


class Herd:
    """All agents of one router, linked.

    Attributes:
        dialled: when any of them dialled.
        linked: when any of them was welcomed.
    """

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.broker = BrokerNode(self.world)
        self.dialled: list[float] = []
        self.linked: list[float] = []
        self.agents = [_Agent(self, number) for number in range(_AGENTS)]
        self.world.run_until(self.world.now + 5)
        assert len(self.linked) == _AGENTS

    def outage(self, seconds: float) -> None:
        """Kill the router, start it again after so long, and watch for 15 s."""
        self.dialled.clear()
        self.linked.clear()
        self.began = self.world.now
        self.broker.crash()
        self.world.run_until(self.began + seconds)
        self.broker.start()
        self.world.run_until(self.began + seconds + 15)
        self.ended = self.began + seconds

    def dials_by_second(self) -> Counter[int]:
        """How often the agents dialled in each second of the outage."""
        return Counter(int(at - self.began) for at in self.dialled if at < self.ended)

    def returns(self) -> list[float]:
        """Seconds from the router's return until each agent was linked, sorted."""
        return sorted(at - self.ended for at in self.linked)


@pytest.fixture(scope="module")
def herd() -> Herd:
    return Herd(1)


def test_agents_do_not_hammer_a_router_that_is_down(herd: Herd) -> None:
    herd.outage(60)
    dials = herd.dials_by_second()
    assert sum(dials[second] for second in range(15)) / _AGENTS < 15  # attempts of one agent in the first 15 s
    steady = [dials[second] for second in range(15, 60)]
    assert sum(steady) / len(steady) < 0.3 * _AGENTS  # one attempt in 4 s from each
    assert max(steady) < 1.5 * sum(steady) / len(steady)  # evenly, without waves


def test_all_agents_are_back_within_ten_seconds(herd: Herd) -> None:
    herd.outage(60)
    returns = herd.returns()
    assert len(returns) == _AGENTS
    assert returns[-1] < 10
    storm = Counter(int(2 * at) for at in returns)
    assert max(storm.values()) < 0.25 * _AGENTS  # of all, in any half second


def test_agents_are_back_at_once_after_a_restart(herd: Herd) -> None:
    herd.outage(0.7)
    returns = herd.returns()
    assert len(returns) == _AGENTS
    assert returns[_AGENTS // 2] < 1
    assert returns[-1] < 2.5
