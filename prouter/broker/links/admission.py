"""Handshakes of agents: a HELLO is checked, and its agent is linked, refused, or made to wait.

An unauthenticated connection costs one decoded frame, and leaves nothing behind. If the uid or the incarnation in a
HELLO is that of a linked agent, the new one is a *challenger*: the broker pings the linked agent, its *rival*, and the
challenger waits until the rival has answered or has failed to. For the HELLO may be an old one that somebody replays.
A challenger that leaves meanwhile has lost, whatever the rival does.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import Any

from prouter.broker.access.gate import Admitted, Claim, Denied, Gate
from prouter.broker.base.env import Env
from prouter.broker.base.switch import Path
from prouter.broker.links.exclusion import Exclusion
from prouter.broker.links.hello import CLIENT, SERVER, AgentInfo, check_protocol
from prouter.broker.links.link import Link
from prouter.broker.links.links import Links
from prouter.errors import ProtocolError
from prouter.fabric.frames import HELLO, Frame
from prouter.fabric.session import Greeted, Session
from prouter.process.log_limit import LogLimit
from prouter.texts import shown

__all__ = ["Admission"]

log = logging.getLogger("prouter.broker")

_LATE = 0.25
"""Seconds by which the timer of a challenge may be late. Beyond that this process stood still, and it runs again."""


class _Challenger:
    """An agent that waits for its rival to answer a ping.

    Attributes:
        path: the challenger's own.
        rival: path of the linked agent, which was pinged.
        ping: number of the ping.
        asked: when it was sent.
        due: when the rival must have answered.
    """

    def __init__(self, path: Path, info: AgentInfo, rival: Path, ping: int, asked: float, due: float) -> None:
        self.path = path
        self.info = info
        self.rival = rival
        self.ping = ping
        self.asked = asked
        self.due = due

    @property
    def beaten(self) -> bool:
        """Whether the rival is alive: it has answered, or sent something lately (its answer may be queued)."""
        return self.rival.session.answered >= self.ping or self.rival.heard > (self.asked + self.due) / 2

    def lost(self, path: Path, reason: str, now: float, *, closed: bool) -> None:
        """Do nothing: `_decide` finds the path lost, or replaced by a new one of the same agent."""

    def left(self, path: Path, reason: str, now: float) -> None:
        """As `lost`."""


class Admission:
    """Handshakes of the agents that dial this router.

    Attributes:
        exclusion: agents that have to wait because they flooded the router.
    """

    def __init__(self, env: Env, links: Links, gate: Gate) -> None:
        self._env = env
        self._links = links
        self._gate = gate
        self.exclusion = Exclusion()
        self._challengers: dict[str, _Challenger] = {}
        """By the connection uid of the rival's link."""
        self._under_way: set[tuple[Any, bytes]] = set()
        """Carriers and routing ids of the connections that wait for a rival, or for the gate."""
        self._dying: set[str] = set()
        self._allowance = float(env.settings.bounds.hellos)
        self._refilled = float("-inf")
        self._logs = LogLimit()

    def handshake(self, carrier: Any, rid: bytes, frames: list[Frame], now: float) -> None:
        """Handle the control frames of an unauthenticated connection.

        Raises:
            ProtocolError: they are no HELLO, or a malformed one.
        """
        if frames[0].type != HELLO:
            raise ProtocolError("the first frame of a connection is no HELLO")
        if (carrier, rid) in self._under_way:
            return  # An agent that waits repeats its HELLO.
        if not self._admit(now):
            self._env.counts["strangers_ignored"] += 1
            return
        path = Path(carrier, rid, Session(now, self._env.settings.heartbeat), now)
        path.security = self._env.shell.security(path)
        _, event = path.session.receive(frames[0], now)
        if isinstance(event, Greeted):
            self._greeted(path, event.body, now)

    def _greeted(self, path: Path, body: dict[str, Any], now: float) -> None:
        problem = check_protocol(body)
        if problem is not None:
            self._refuse(path, "bad_version", problem)
            return
        decision = self._gate.decide(body.get("uid"), body.get("token"), path.security, self._env.wall())
        if isinstance(decision, Denied):
            self._refuse(path, decision.code, decision.text, body.get("uid"))
            return
        try:
            if body.get("kind") == "obituary":
                self._agent_died(body.get("uid"), body.get("incarnation"), now)
                return
            info = self._read(body, decision.mark if isinstance(decision, Admitted) else "")
        except ProtocolError as error:
            self._refuse(path, "bad_hello", error.detail, body.get("uid"))
            return
        if isinstance(decision, Claim):
            self._under_way.add((path.carrier, path.rid))
            self._gate.claim(decision, partial(self._claimed, path, info), now)
        else:
            self._admitted(path, info, now)

    def _claimed(self, path: Path, info: AgentInfo, outcome: Admitted | Denied, now: float) -> None:
        """Go on with an agent whose use of an invitation was stored, or could not be."""
        self._env.now = now
        self._under_way.discard((path.carrier, path.rid))
        if not self._env.shell.is_open(path):
            return
        if isinstance(outcome, Denied):
            self._refuse(path, outcome.code, outcome.text, info.uid)
        else:
            self._admitted(path, replace(info, admitted_by=outcome.mark), now)

    def _admitted(self, path: Path, info: AgentInfo, now: float) -> None:
        """Go on with an agent whose credentials are right: link it, unless it has to wait or challenges another."""
        mark = info.admitted_by
        same = self._links.find(info.incarnation, SERVER)
        wait = self.exclusion.left(info.uid, now)
        if same is None:
            wait = max(wait, self.exclusion.left_for_new(mark, now))
        if wait:
            text = f"this agent, or others with its token, sent too much; it may link again in {wait:.0f} s"
            self._refuse(path, "flooding", text, info.uid)
            return
        if same is not None and same.up and same.info.uid != info.uid:
            self._refuse(path, "bad_hello", "the incarnation belongs to an agent with another uid", info.uid)
            return
        rivals = [*([same] if same is not None else ()), *self._links.of_agent(info.uid, SERVER)]
        there = next((rival for rival in rivals if rival.up), None)
        if there is not None:
            self._challenge(path, info, there, now)
        else:
            self._welcome(path, info, now)

    def _read(self, body: dict[str, Any], mark: str) -> AgentInfo:
        """Read the agent's HELLO.

        Raises:
            ProtocolError: the peer is no agent, or its HELLO is malformed.
        """
        kind = body.get("kind")
        if kind != "agent":
            raise ProtocolError(f"this port of a router is for agents, not for a peer of kind {shown(kind, 32)}")
        if body.get("incarnation") == self._env.incarnation:
            raise ProtocolError("the incarnation is this router's own")
        return AgentInfo.from_hello(body, mark)

    def _agent_died(self, uid: object, incarnation: object, now: float) -> None:
        """Handle a death notice: the agent's keeper says that the agent has died and its jobs have ended."""
        if not isinstance(incarnation, str):
            return
        for mode in (SERVER, CLIENT):
            link = self._links.find(incarnation, mode)
            if link is not None and link.info.uid == uid:
                self._drop_dead(link, now)

    def _drop_dead(self, link: Link, now: float) -> None:
        """Drop the link of a dead agent; if it is still UP, only after the end of its connection was noticed."""
        if not link.up:
            self._links.drop(link, "its process ended", now)
        elif link.connection not in self._dying:
            self._dying.add(link.connection)
            self._env.timers.at(now + self._env.settings.takeover_patience, partial(self._drop_late, link))

    def _drop_late(self, link: Link, now: float) -> None:
        self._dying.discard(link.connection)
        if not link.up:
            self._links.drop(link, "its process ended", now)

    def _welcome(self, path: Path, info: AgentInfo, now: float) -> None:
        if self._gate.is_revoked(info.admitted_by):  # While it waited for the fate of another link.
            self._refuse(path, "bad_token", "the invitation was revoked", info.uid)
            return
        if self._links.find(info.incarnation, SERVER) is None and not self._links.make_room(info, now):
            most = self._env.settings.max_agents
            self._refuse(
                path, "too_many_agents", f"{most} agents are linked with this token (server.max_agents)", info.uid
            )
            return
        for rival in self._links.of_agent(info.uid, SERVER):
            if rival.info.incarnation != info.incarnation:
                self._links.drop(rival, "a new incarnation of the agent took over", now)
        settings = self._env.settings
        self._env.shell.accept(path)
        link = self._links.adopt(info, SERVER, path, now)
        body = {
            "router": {**settings.auth, "platform": settings.platform},
            "incarnation": self._env.incarnation,
            "connection": link.connection,
            "mode": SERVER,
            "keys": list(self._gate.rules.router_keys),
        }
        self._env.outbox.say(path, path.session.welcome(body))
        self._links.opened(link, now)

    def _challenge(self, path: Path, info: AgentInfo, rival: Link, now: float) -> None:
        known = self._challengers.get(rival.connection)
        waits = known is not None and self._env.shell.is_open(known.path)
        if rival.path is None or (waits and info.incarnation != rival.info.incarnation):
            self._env.counts["strangers_ignored"] += 1
            return
        self._under_way.add((path.carrier, path.rid))
        if known is not None:
            # Probably the same agent, which gave up an attempt that took long and dialled again.
            self._under_way.discard((known.path.carrier, known.path.rid))
            if waits:
                self._env.shell.forget(known.path)
            known.path, known.info, path.owner = path, info, known
            return
        ping = rival.path.session.ping(now)
        self._env.outbox.say(rival.path, ping)
        due = now + self._env.settings.takeover_patience
        path.owner = challenger = _Challenger(path, info, rival.path, ping.offset, now, due)
        self._challengers[rival.connection] = challenger
        log.info("event=link_challenged link=%s agent=%s", rival.connection, info.uid)
        self._env.timers.at(due, partial(self._decide, rival, challenger))

    def rival_lost(self, link: Link, now: float) -> None:
        """Let the challenger of a link wait no longer: the rival's path is lost."""
        challenger = self._challengers.get(link.connection)
        if challenger is not None:
            self._env.timers.at(now, partial(self._decide, link, challenger))

    def _decide(self, rival: Link, challenger: _Challenger, now: float) -> None:
        if self._challengers.get(rival.connection) is not challenger:
            return
        waits = rival.path is challenger.rival and not challenger.beaten
        if waits and now > challenger.due + _LATE:
            # This process stood still: the rival's answer may have arrived unread.
            challenger.due = now + self._env.settings.takeover_patience
            self._env.timers.at(challenger.due, partial(self._decide, rival, challenger))
            return
        del self._challengers[rival.connection]
        self._under_way.discard((challenger.path.carrier, challenger.path.rid))
        if not self._env.shell.is_open(challenger.path):
            return
        if rival.up and not waits:
            uid = challenger.info.uid
            self._refuse(challenger.path, "uid_in_use", f"an agent with uid '{uid}' is already linked and alive", uid)
        else:
            self._welcome(challenger.path, challenger.info, now)

    def _refuse(self, path: Path, code: str, text: str, uid: object = None) -> None:
        self._env.counts["hellos_refused"] += 1
        if self._logs.allows(self._env.now):
            log.warning("event=hello_refused code=%s agent=%s text=%r", code, shown(uid), text)
        self._env.outbox.say(path, path.session.refuse(code, text))
        self._env.shell.forget(path)

    def _admit(self, now: float) -> bool:
        """Whether the broker may read one more HELLO in this second."""
        limit = float(self._env.settings.bounds.hellos)
        if now > self._refilled:
            self._allowance = min(limit, self._allowance + (now - self._refilled) * limit)
            self._refilled = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True
