"""The registry of agent links: new paths of known agents, agents that are away, and those that do not come back.

`prouter.broker.links.link` has the states of one link.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Protocol

from prouter.broker.base.env import Env
from prouter.broker.base.switch import Path
from prouter.broker.links.heartbeats import Heartbeats
from prouter.broker.links.hello import AgentInfo, connection_uid
from prouter.broker.links.link import Link, LinkState

__all__ = ["LinkListener", "Links"]

log = logging.getLogger("prouter.broker")

_ORPHAN_MARGIN = 30.0
"""Seconds that the broker waits for a silent agent beyond the agent's own orphan timeout."""
_AWAY = 1024
"""Agents without jobs that may be away, for each token. When one more links, those away for the longest are dropped."""
_LOOKED_AT = 4
"""How many agents that are away the broker checks for each agent that links."""


class LinkListener(Protocol):
    """What the registry tells of its links."""

    def link_up(self, link: Link, now: float) -> None:
        """A link is UP: a new one, or one with a new path."""

    def link_leaves(self, link: Link) -> None:
        """An agent is about to stop and to come back."""

    def link_down(self, link: Link, reason: str, now: float) -> None:
        """A link is AWAY."""

    def link_gone(self, link: Link, reason: str, now: float) -> None:
        """A link is GONE."""


class Links:
    """The registry.

    Attributes:
        listener: is told what becomes of links; set once, before the first message.
        on_change: called when `/connections` shows something else from now on than figures, before anybody is told.
        jobs_of: tells how many jobs there are on a connection, those being created included.
    """

    listener: LinkListener

    def __init__(self, env: Env, heartbeats: Heartbeats) -> None:
        self.on_change: Callable[[], None] = _nothing
        self.jobs_of: Callable[[str], int] = _none
        self._env = env
        self._heartbeats = heartbeats
        self._links: dict[str, Link] = {}
        self._by_agent: dict[str, dict[str, Link]] = {}
        self._by_token: Counter[str] = Counter()
        """How many links each token has admitted."""
        self._away: dict[str, OrderedDict[str, Link]] = {}
        """Links that are AWAY, by token, the longest away first."""

    def __iter__(self) -> Iterator[Link]:
        return iter(self._links.values())

    def __len__(self) -> int:
        return len(self._links)

    @property
    def away(self) -> int:
        """How many agents are away."""
        return sum(map(len, self._away.values()))

    def get(self, connection: str) -> Link | None:
        """The link with this connection uid."""
        return self._links.get(connection)

    def find(self, incarnation: str, mode: str) -> Link | None:
        """The link of the agent with this incarnation, or None.

        Earlier versions of the router used the incarnation itself as the connection uid in mode SERVER. A restored link
        keeps such a uid, because it is part of its jobs' paths.
        """
        link = self._links.get(connection_uid(incarnation, mode))
        if link is None:
            before = self._links.get(incarnation)
            known = before is not None and before.mode == mode and before.info.incarnation == incarnation
            link = before if known else None
        return link

    def of_agent(self, uid: str, mode: str | None = None) -> list[Link]:
        """Links of this agent, those that are UP first."""
        found = [link for link in self._by_agent.get(uid, {}).values() if mode is None or link.mode == mode]
        return sorted(found, key=lambda link: (not link.up, link.mode == "CLIENT", link.connection))

    def restore(self, connection: str, mode: str, info: AgentInfo, since: float, now: float) -> Link:
        """Take over a link that an earlier broker stored: it is AWAY until its agent is back."""
        link = self._add(connection, mode, info, since)
        self._expect(link, info.orphan_timeout, _ORPHAN_MARGIN, "not back since the router's restart", now)
        return link

    def make_room(self, info: AgentInfo, now: float) -> bool:
        """Whether one more agent may link with its token. Drops some agents without jobs if many are away."""
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
        """The link, new or known, of an agent that was accepted and is reachable over `path` from now on.

        The caller then sends WELCOME on the path, and calls `opened` after that.
        """
        link = self.find(info.incarnation, mode)
        if link is None:
            link = self._add(connection_uid(info.incarnation, mode), mode, info, self._env.wall())
        else:
            self._detach(link)
            self._leave_index(link)
            link.info = info
            self._enter_index(link)
        connection = link.connection
        self._returned(link)
        link.draining = info.draining
        link.listed, link.leaving = set(), False
        link.change(LinkState.UP, path)
        link.encrypted = path.security.encrypted
        path.owner = link
        self._env.switch.add_agent(path, connection)
        self._heartbeats.watch(path)
        self.on_change()
        return link

    def opened(self, link: Link, now: float) -> None:
        """Tell everybody about a link whose agent has got its WELCOME."""
        self._env.counts["links_up"] += 1
        if link.path is not None:
            self._env.outbox.say(link.path, link.path.session.ping(now))
        log.info(
            "event=link_up link=%s agent=%s name=%r mode=%s", link.connection, link.info.uid, link.info.name, link.mode
        )
        self.listener.link_up(link, now)

    def leave(self, link: Link) -> None:
        """Note that an agent is about to stop and to come back. What is under way goes on until its path is lost."""
        if link.up:
            link.leaving = True
            self.on_change()
            self.listener.link_leaves(link)

    def path_lost(self, link: Link, reason: str, now: float, *, closed: bool) -> None:
        """Wait for an agent whose path is lost.

        Args:
            closed: whether the connection was closed, rather than silent.
        """
        self._detach(link)
        link.change(LinkState.AWAY)
        self.on_change()
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
        """Forget a link whose agent does not come back. Idempotent."""
        if self._links.get(link.connection) is not link:
            return
        self._detach(link)
        link.change(LinkState.GONE)
        self._returned(link)
        del self._links[link.connection]
        self._leave_index(link)
        self.on_change()
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
        """Give up the link's path, if it has one."""
        path = link.path
        if path is not None:
            self._env.switch.remove(path)
            self._heartbeats.drop(path)
            self._env.shell.forget(path)

    def _expect(self, link: Link, patience: float, margin: float, reason: str, now: float) -> None:
        """Wait for an agent.

        Args:
            patience: seconds that the agent asks for; the router's own bound applies.
            margin: seconds beyond that.
        """
        if link.away is not None:
            link.away.cancel()
        most = self._env.settings.max_absence
        if patience > most:
            log.info("event=absence_bounded agent=%s asked=%g waits=%g", link.info.uid, patience, most)
        link.away = self._env.timers.at(now + min(patience, most) + margin, partial(self._not_back, link, reason))
        self._away.setdefault(link.info.admitted_by, OrderedDict())[link.connection] = link

    def _returned(self, link: Link) -> None:
        """Stop waiting for an agent that was away."""
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
        self.drop(link, f"{reason}, and it did not come back in time", now)


def _none(_connection: str) -> int:
    """The default of `Links.jobs_of`."""
    return 0


def _nothing() -> None:
    """The default of `Links.on_change`."""
