"""Which of its routers an agent links to, if it links to some of them only (``client.fanout``).

Each agent prefers the routers in an order of its own (rendezvous hashing), so that the links of many agents spread over
all routers, and stay where they are when a router is added. A router that stays away is made up for by the next one.
Nothing is cut to go back: a link that is one too many ends when it breaks by itself and is not needed any more.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence

import gevent

__all__ = ["Fanout"]

PATIENCE = 10.0
"""Seconds for which a router may be away until another one is linked in its place: more than its restart takes."""
FORGOTTEN = 120.0
"""Seconds after which a router that is away and not needed is not dialled any more: streams have been given up."""
_LOOK = 1.0


class Fanout:
    """The routers that one agent links to.

    Args:
        agent: uid of the agent.
        addresses: of all routers.
        most: how many of them to link to; None for all.

    Attributes:
        chosen: addresses of the routers that are dialled, in the order of preference.
    """

    def __init__(self, agent: str, addresses: Sequence[str], most: int | None) -> None:
        self._order = sorted(addresses, key=lambda address: hashlib.sha256(f"{agent} {address}".encode()).digest())
        self._most = min(most or len(self._order), len(self._order))
        self._away_since: dict[str, float] = {}
        self.chosen = self._order[: self._most]

    @property
    def partial(self) -> bool:
        """Whether there are routers to which the agent does not link."""
        return self._most < len(self._order)

    def look(self, up: Callable[[str], bool], now: float) -> tuple[list[str], list[str]]:
        """Return the addresses that are to be dialled from now on, and those that are not to be dialled any more.

        Args:
            up: whether the router at an address is linked.
        """
        for address in self.chosen:
            if up(address):
                self._away_since.pop(address, None)
            else:
                self._away_since.setdefault(address, now)
        away = {address: now - since for address, since in self._away_since.items()}
        lasting = [address for address in self.chosen if away.get(address, 0.0) < PATIENCE]
        spare = [address for address in self._order if address not in self.chosen]
        begin = spare[: max(0, self._most - len(lasting))]
        linked = sum(address not in away for address in self.chosen)
        extra = [address for address in self.chosen if address not in self._order[: self._most]]
        end = [address for address in extra if away.get(address, 0.0) > FORGOTTEN and linked >= self._most]
        self._choose(begin, end)
        return begin, end

    def _choose(self, begin: list[str], end: list[str]) -> None:
        for address in end:
            del self._away_since[address]
        self.chosen = [
            address for address in self._order if address in begin or (address in self.chosen and address not in end)
        ]

    def run(self, up: Callable[[str], bool], dial: Callable[[str], None], give_up: Callable[[str], None]) -> None:
        """Look once a second, for ever. Runs in a greenlet."""
        while True:
            gevent.sleep(_LOOK)
            begin, end = self.look(up, time.monotonic())
            for address in begin:
                dial(address)
            for address in end:
                give_up(address)
