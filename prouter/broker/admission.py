"""The door for agents and workers: who says HELLO is checked, then accepted, refused once, or made to wait.

Before it is accepted a peer costs a decoded frame and nothing that stays. An agent that claims the uid of a linked
agent has to wait until that one failed to prove that it is alive.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from prouter.broker.env import Env
from prouter.broker.hello import CLIENT, SERVER, AgentInfo, check_protocol, connection_uid, token_accepted
from prouter.broker.links import Link, Links
from prouter.broker.switch import Path
from prouter.errors import ProtocolError
from prouter.fabric.frames import HELLO, Frame
from prouter.fabric.session import Greeted, Session

__all__ = ["Admission"]

log = logging.getLogger("prouter.broker")

_LOGGED = 10
"""Refusals logged in a second; all are counted."""


class _Challenger:
    """An agent that waits for the fate of the one whose uid it claims."""

    def __init__(self, path: Path, info: AgentInfo, ping: int) -> None:
        self.path = path
        self.info = info
        self.ping = ping

    def receive(self, path: Path, frame: Frame, now: float) -> None:
        """Nothing counts before it is accepted."""

    def lost(self, path: Path, reason: str, now: float, *, closed: bool) -> None:
        """Noticed when its turn comes: whoever it was talks over a new path then."""

    def left(self, path: Path, reason: str, now: float) -> None:
        """As `lost`."""


class Admission:
    """See the module's docstring; this is the agents' side of it."""

    def __init__(self, env: Env, links: Links) -> None:
        self._env = env
        self._links = links
        self._challengers: dict[str, _Challenger] = {}
        self._dying: set[str] = set()
        self._allowance = float(env.settings.bounds.hellos)
        self._refilled = float("-inf")
        self._logged = 0
        """Refusals in the second that `_logged_in` names."""
        self._logged_in = 0

    def stranger(self, carrier: Any, rid: bytes, frames: list[Frame], now: float) -> None:
        """Control frames of a connection whose peer is not accepted.

        Raises:
            ProtocolError: they are no introduction, or a malformed one.
        """
        if frames[0].type != HELLO:
            raise ProtocolError("a stranger does not introduce itself")
        if not self._admit(now):
            self._env.counts["strangers_ignored"] += 1
            return
        path = Path(carrier, rid, Session(now, self._env.settings.heartbeat), now)
        _, event = path.session.receive(frames[0], now)
        if isinstance(event, Greeted):
            self._greeted(path, event.body, now)

    def _greeted(self, path: Path, body: dict[str, Any], now: float) -> None:
        problem = check_protocol(body)
        if problem is not None:
            self._refuse(path, "bad_version", problem)
            return
        if not token_accepted(self._env.settings.tokens, body.get("token")):
            self._refuse(path, "bad_token", "the token is not accepted here", body.get("uid"))
            return
        if body.get("kind") == "obituary":
            self._mourn(str(body.get("uid")), str(body.get("incarnation")), now)
            return
        try:
            info = AgentInfo.from_hello(body)
        except ProtocolError as error:
            self._refuse(path, "bad_hello", error.detail, body.get("uid"))
            return
        same = self._links.get(connection_uid(info.incarnation, SERVER))
        if same is not None and same.info.uid != info.uid:
            self._refuse(path, "bad_hello", "the incarnation belongs to an agent with another uid", info.uid)
            return
        if same is not None:
            self._welcome(path, info, now)
            return
        for rival in self._links.of_agent(info.uid, SERVER):
            if rival.up:
                self._challenge(path, info, rival, now)
                return
        self._welcome(path, info, now)

    def _mourn(self, uid: str, incarnation: str, now: float) -> None:
        """The agent's keeper says that the agent has died and its jobs have ended."""
        for mode in (SERVER, CLIENT):
            link = self._links.get(connection_uid(incarnation, mode))
            if link is not None and link.info.uid == uid:
                self._bury(link, now)

    def _bury(self, link: Link, now: float) -> None:
        """Drop the link of a dead agent. One that seems to be up gets time for its connection's end to be noticed."""
        if not link.up:
            self._links.drop(link, "its process ended", now)
        elif link.connection not in self._dying:
            self._dying.add(link.connection)
            self._env.timers.at(now + self._env.settings.takeover_patience, partial(self._bury_late, link))

    def _bury_late(self, link: Link, now: float) -> None:
        self._dying.discard(link.connection)
        if not link.up:
            self._links.drop(link, "its process ended", now)

    def _welcome(self, path: Path, info: AgentInfo, now: float) -> None:
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
        }
        self._env.outbox.say(path, path.session.welcome(body))
        self._links.opened(link, now)

    def _challenge(self, path: Path, info: AgentInfo, rival: Link, now: float) -> None:
        known = self._challengers.get(info.uid)
        if known is not None or rival.path is None:
            self._env.counts["strangers_ignored"] += 1
            return
        ping = rival.path.session.ping(now)
        self._env.outbox.say(rival.path, ping)
        path.owner = challenger = _Challenger(path, info, ping.offset)
        self._challengers[info.uid] = challenger
        log.info("event=link_challenged link=%s agent=%s", rival.connection, info.uid)
        self._env.timers.at(now + self._env.settings.takeover_patience, partial(self._decide, rival))

    def _decide(self, rival: Link, now: float) -> None:
        challenger = self._challengers.pop(rival.info.uid, None)
        if challenger is None:
            return
        if rival.path is not None and rival.path.session.answered >= challenger.ping:
            uid = rival.info.uid
            self._refuse(challenger.path, "uid_in_use", f"an agent with uid '{uid}' is already linked and alive", uid)
        else:
            self._welcome(challenger.path, challenger.info, now)

    def _refuse(self, path: Path, code: str, text: str, uid: object = None) -> None:
        self._env.counts["hellos_refused"] += 1
        if self._logged_in != int(self._env.now):
            self._logged_in, self._logged = int(self._env.now), 0
        self._logged += 1
        if self._logged <= _LOGGED:
            log.warning("event=hello_refused code=%s agent=%.64r text=%r", code, uid, text)
        self._env.outbox.say(path, path.session.refuse(code, text))
        self._env.shell.forget(path)

    def _admit(self, now: float) -> bool:
        """Whether there is time to look at one more stranger this second."""
        limit = float(self._env.settings.bounds.hellos)
        if now > self._refilled:
            self._allowance = min(limit, self._allowance + (now - self._refilled) * limit)
            self._refilled = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True
