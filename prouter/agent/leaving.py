"""The beginning of an agent's stop: if its jobs outlive it, what is under way ends first, and nothing new begins."""

from __future__ import annotations

import time

import gevent

from prouter.agent.links.links import Links
from prouter.agent.service import Service

__all__ = ["leave"]

_PATIENCE = 2.0
"""Seconds for streams that are open; those that last longer (WebSockets, followers of logs) are cut then."""
_QUIET = 0.1
"""Seconds between looks at the streams; in the first one routers hear that the agent stops."""


def leave(links: Links, service: Service, *, comes_back: bool) -> None:
    """Take no new jobs. If the agent comes back, tell routers, and wait until no stream is left, or for two seconds.

    From then on routers hold requests until the agent is back. What they have sent before is still carried out.
    """
    if comes_back:
        links.tell("leaving", {})
        end = time.monotonic() + _PATIENCE
        gevent.sleep(_QUIET)
        while time.monotonic() < end and any(mux.streams for link in links for mux in link.peer.muxes.values()):
            gevent.sleep(_QUIET)
    service.close(comes_back=comes_back)
