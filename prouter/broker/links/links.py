"""Agent links: who is linked, over which path, since when; down, back, taken over, gone for good.

A link is known by its connection uid and survives its paths::

    UP --path lost--> AWAY --same incarnation is back--> UP
    UP or AWAY --another incarnation of the agent, goodbye, or away for too long--> GONE (forgotten)

An agent whose connection was *closed* is back soon or dead (its keeper says so, see `Admission`); one that fell
*silent* may be behind a broken network and keeps its jobs until its own orphan timeout.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any, Protocol

from prouter.broker.base.env import Env
from prouter.broker.base.switch import Path
from prouter.broker.base.timers import Timer
from prouter.broker.links.heartbeats import Heartbeats
from prouter.broker.links.hello import AgentInfo, connection_uid
from prouter.fabric.bounds import MAX_AGENT_REPLY
from prouter.fabric.calls import Caller
from prouter.fabric.frames import Frame

__all__ = ["Link", "LinkListener", "Links"]

log = logging.getLogger("prouter.broker")

_ORPHAN_MARGIN = 30.0
"""Seconds an agent that fell silent is waited for beyond its own orphan timeout."""
_AWAY = 1024
"""Agents without a job that may be away, for each token; when one more comes, the longest away are forgotten."""
_LOOKED_AT = 4
"""Of those that are away, how many are looked at for each agent that comes."""
_NEAR, _FAR = 0.025, 0.05
"""Seconds of a round trip below which an agent counts as near, and above which as far; between, as it did before."""


class Link:
    """One connection to one agent.

    Attributes:
        connection: its uid.
        mode: ``SERVER`` (the agent dialled in) or ``CLIENT`` (the router dialled out).
        path: None while the agent is away.
        caller: calls to the agent that are not answered yet.
        since: when it was first linked, seconds since the epoch.
        load: the agent's load per core, as it last said.
        running: jobs it runs, as it last said.
        far: whether the way to the agent is a long one.
        placed: jobs sent to it since then.
        announced: uids of the jobs announced since the path came up, None when the announcement is complete.
        confirmed: whether its jobs were announced since this broker started.
        encrypted: whether its last connection was.
    """

    def __init__(self, links: Links, connection: str, mode: str, info: AgentInfo, since: float) -> None:
        self._links = links
        self.connection = connection
        self.mode = mode
        self.info = info
        self.since = since
        self.path: Path | None = None
        self.caller = Caller(MAX_AGENT_REPLY)
        self.load = 0.0
        self.running = 0
        self.placed = 0
        self.draining = info.draining
        self.announced: set[str] | None = set()
        self.confirmed = False
        self.away: Timer | None = None
        self.far = False
        self.encrypted = False

    @property
    def up(self) -> bool:
        """Whether the agent is reachable."""
        return self.path is not None

    @property
    def agent(self) -> dict[str, str]:
        """Uid and name of the agent."""
        return {"uid": self.info.uid, "name": self.info.name}

    @property
    def latency(self) -> float | None:
        """Seconds of the last round trip measured."""
        return self.path.session.latency if self.path is not None else None

    def describe(self) -> dict[str, Any]:
        """The link as workers are told of it."""
        return {
            "connection": self.connection,
            "agent": self.agent,
            "process": self.info.process,
            "mode": self.mode,
            "up": self.up,
            "far": self.far,
        }

    def measured(self) -> bool:
        """A round trip was measured: whether the agent is far now and was not, or the other way round."""
        latency = self.latency
        if latency is None or (_NEAR <= latency <= _FAR):
            return False
        before, self.far = self.far, latency > _FAR
        return self.far is not before

    def receive(self, path: Path, frame: Frame, now: float) -> None:
        """A call, reply or event of the agent."""
        if path is self.path:
            self._links.listener.link_receive(self, frame, now)

    def lost(self, path: Path, reason: str, now: float, *, closed: bool) -> None:
        """Its path is gone."""
        if path is self.path:
            self._links.path_lost(self, reason, now, closed=closed)

    def left(self, path: Path, reason: str, now: float) -> None:
        """The agent said goodbye: it is waited for only if its jobs outlive it."""
        if path is not self.path:
            return
        if self.info.keep_for > 0:
            self._links.path_lost(self, f"goodbye: {reason}", now, closed=True)
        else:
            self._links.drop(self, f"goodbye: {reason}", now)


class LinkListener(Protocol):
    """Who wants to know what becomes of links."""

    def link_up(self, link: Link, now: float) -> None:
        """A new link, or a new path of a known one."""

    def link_down(self, link: Link, reason: str, now: float) -> None:
        """The agent is away."""

    def link_gone(self, link: Link, reason: str, now: float) -> None:
        """It will not come back as what it was."""

    def link_receive(self, link: Link, frame: Frame, now: float) -> None:
        """A call, reply or event of the agent."""


class Links:
    """The registry; see the module's docstring.

    Attributes:
        version: changes with every change of what `/connections` shows but load and latency.
        jobs_of: how many jobs there are, or are to be, on a connection.
    """

    def __init__(self, env: Env, heartbeats: Heartbeats, listener: LinkListener) -> None:
        self.listener = listener
        self.version = 0
        self.jobs_of: Callable[[str], int] = _none
        self._env = env
        self._heartbeats = heartbeats
        self._links: dict[str, Link] = {}
        self._by_agent: dict[str, dict[str, Link]] = {}
        self._by_token: Counter[str] = Counter()
        """How many were let in by each token."""
        self._away: dict[str, OrderedDict[str, Link]] = {}
        """Those that are away, by token, the longest first."""

    def __iter__(self) -> Iterator[Link]:
        return iter(self._links.values())

    def __len__(self) -> int:
        return len(self._links)

    def get(self, connection: str) -> Link | None:
        """The link with this connection uid."""
        return self._links.get(connection)

    def find(self, incarnation: str, mode: str) -> Link | None:
        """The link of the agent with this incarnation.

        Routers before this version used the incarnation itself as the connection uid in mode SERVER. A link that was
        restored with one keeps it, since the paths of its jobs hold it.
        """
        link = self._links.get(connection_uid(incarnation, mode))
        if link is None:
            before = self._links.get(incarnation)
            known = before is not None and before.mode == mode and before.info.incarnation == incarnation
            link = before if known else None
        return link

    def of_agent(self, uid: str, mode: str | None = None) -> list[Link]:
        """Links of the agent `uid`, those that are up first."""
        found = [link for link in self._by_agent.get(uid, {}).values() if mode is None or link.mode == mode]
        return sorted(found, key=lambda link: (not link.up, link.mode == "CLIENT", link.connection))

    def restore(self, connection: str, mode: str, info: AgentInfo, since: float, now: float) -> Link:
        """A link of the broker before: away until its agent is back."""
        link = self._add(connection, mode, info, since)
        self._expect(link, info.orphan_timeout, _ORPHAN_MARGIN, "not back since the router's restart", now)
        return link

    def make_room(self, info: AgentInfo, now: float) -> bool:
        """Whether one more agent may be linked with its token; of many that are away without a job some are dropped."""
        away = self._away.get(info.admitted_by)
        if away is not None and len(away) > _AWAY:
            for connection in list(islice(away, _LOOKED_AT)):
                link = away[connection]
                if self.jobs_of(connection):
                    away.move_to_end(connection)
                else:
                    self.drop(link, "too many agents are away", now)
        return self._by_token[info.admitted_by] < self._env.settings.max_agents

    def adopt(self, info: AgentInfo, mode: str, path: Path, now: float) -> Link:
        """`path` leads to this agent, which was accepted: a new link, or a new path of a known one.

        The caller says WELCOME on the path before, and `opened` after.
        """
        link = self.find(info.incarnation, mode)
        if link is None:
            link = self._add(connection_uid(info.incarnation, mode), mode, info, self._env.wall())
        else:
            if link.path is not None:
                self._detach(link)
            self._leave_index(link)
            link.info = info
            self._enter_index(link)
        connection = link.connection
        self._returned(link)
        link.draining = info.draining
        link.announced = set()
        link.path = path
        link.encrypted = path.security.encrypted
        path.owner = link
        self._env.switch.add_agent(path, connection)
        self._heartbeats.watch(path)
        self.version += 1
        return link

    def opened(self, link: Link, now: float) -> None:
        """The agent was told that it is linked: everybody else may know."""
        self._env.counts["links_up"] += 1
        if link.path is not None:
            self._env.outbox.say(link.path, link.path.session.ping(now))
        log.info(
            "event=link_up link=%s agent=%s name=%r mode=%s", link.connection, link.info.uid, link.info.name, link.mode
        )
        self.listener.link_up(link, now)

    def path_lost(self, link: Link, reason: str, now: float, *, closed: bool) -> None:
        """The link's path is gone; it is waited for."""
        self._detach(link)
        self.version += 1
        self._env.counts["links_lost"] += 1
        log.warning("event=link_down link=%s agent=%s reason=%r", link.connection, link.info.uid, reason)
        if closed:
            patience = link.info.keep_for
            margin = self._env.settings.return_patience
        else:
            patience = link.info.orphan_timeout
            margin = _ORPHAN_MARGIN
        self._expect(link, patience, margin, reason, now)
        self.listener.link_down(link, reason, now)

    def drop(self, link: Link, reason: str, now: float) -> None:
        """The link is gone for good."""
        if self._links.get(link.connection) is not link:
            return
        if link.path is not None:
            self._detach(link)
        self._returned(link)
        del self._links[link.connection]
        self._leave_index(link)
        self.version += 1
        log.warning("event=link_gone link=%s agent=%s reason=%r", link.connection, link.info.uid, reason)
        self.listener.link_gone(link, reason, now)

    def _add(self, connection: str, mode: str, info: AgentInfo, since: float) -> Link:
        link = Link(self, connection, mode, info, since)
        self._links[connection] = link
        self._enter_index(link)
        return link

    def _enter_index(self, link: Link) -> None:
        self._by_agent.setdefault(link.info.uid, {})[link.connection] = link
        self._by_token[link.info.admitted_by] += 1

    def _leave_index(self, link: Link) -> None:
        of_agent = self._by_agent[link.info.uid]
        del of_agent[link.connection]
        if not of_agent:
            del self._by_agent[link.info.uid]
        self._by_token[link.info.admitted_by] -= 1
        if not self._by_token[link.info.admitted_by]:
            del self._by_token[link.info.admitted_by]

    def _detach(self, link: Link) -> None:
        path, link.path = link.path, None
        if path is not None:
            self._env.switch.remove(path)
            self._heartbeats.drop(path)
            self._env.shell.forget(path)

    def _expect(self, link: Link, patience: float, margin: float, reason: str, now: float) -> None:
        """Wait for an agent for as long as it said, within this router's bound."""
        if link.away is not None:
            link.away.cancel()
        most = self._env.settings.max_absence
        if patience > most:
            log.info("event=absence_bounded agent=%s asked=%g waits=%g", link.info.uid, patience, most)
        link.away = self._env.timers.at(now + min(patience, most) + margin, partial(self._not_back, link, reason))
        self._away.setdefault(link.info.admitted_by, OrderedDict())[link.connection] = link

    def _returned(self, link: Link) -> None:
        """It is not waited for any more."""
        if link.away is not None:
            link.away.cancel()
            link.away = None
        for mark, away in self._away.items():
            if away.pop(link.connection, None) is not None:
                if not away:
                    del self._away[mark]
                return

    def _not_back(self, link: Link, reason: str, now: float) -> None:
        self._returned(link)
        self.drop(link, f"{reason}, and not back in time", now)


def _none(_connection: str) -> int:
    """Nobody has told yet who knows about jobs."""
    return 0
