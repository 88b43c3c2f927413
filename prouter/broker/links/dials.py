"""Agents that listen: the router dials them by address and token for a new job, and again while they have jobs.

A request for an address with a token gets the link only after the agent has accepted that very token. `NEXT` is the
table of a dial's states, `_Dial.change` the only way from one to the next::

    WAITING ◄──► DIALLING ──► WELCOMED ──► LINKED        each of them ──► ENDED
       ▲                         │            │
       └─────────────────────────┴────────────┘
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable
from enum import Enum
from functools import partial

from prouter.broker.base.env import Env
from prouter.broker.base.switch import Path
from prouter.broker.base.timers import Timer
from prouter.broker.links.heartbeats import Heartbeats
from prouter.broker.links.hello import CLIENT, AgentInfo, connection_uid
from prouter.broker.links.link import Link
from prouter.broker.links.links import Links
from prouter.errors import AgentUnavailable, Forbidden, Overloaded, ProtocolError, PRouterError
from prouter.fabric.calls import event_frame
from prouter.fabric.frames import Frame
from prouter.fabric.session import Refused, Session, Welcomed
from prouter.transport.backoff import Backoff

__all__ = ["NEXT", "DialState", "Dials"]

log = logging.getLogger("prouter.broker")

_FIRST_DELAY, _LONGEST_DELAY = 0.5, 5.0
"""Backoff, seconds. A create waits for `Settings.dial_timeout` only, so the growth ends early."""

Linked = Callable[[Link | None, PRouterError | None, float], None]
"""Called at the end of an attempt: with the link, or the error, and the time."""


class DialState(Enum):
    """How far the router got with an address.

    * WAITING: there is no path; the next attempt has a time, or begins at once.
    * DIALLING: the router has sent HELLO, which has no answer yet.
    * WELCOMED: the agent has answered, and its link is being made. Its earlier link may end in that moment.
    * LINKED: the path is that of a link.
    * ENDED: nobody dials any more.
    """

    WAITING = "waiting"
    DIALLING = "dialling"
    WELCOMED = "welcomed"
    LINKED = "linked"
    ENDED = "ended"


NEXT: dict[DialState, frozenset[DialState]] = {
    DialState.WAITING: frozenset({DialState.WAITING, DialState.DIALLING, DialState.ENDED}),
    DialState.DIALLING: frozenset({DialState.WAITING, DialState.WELCOMED, DialState.ENDED}),
    DialState.WELCOMED: frozenset({DialState.WAITING, DialState.LINKED, DialState.ENDED}),
    DialState.LINKED: frozenset({DialState.WAITING, DialState.ENDED}),
    DialState.ENDED: frozenset(),
}
"""The states that may follow each state."""


class _Dial:
    """One address dialled with one token.

    Attributes:
        state: changed by `change` alone.
        link: the agent's, also while it is AWAY; None before the first.
    """

    def __init__(self, dials: Dials, address: str, token: str) -> None:
        self._dials = dials
        self.address = address
        self.token = token
        self.state = DialState.WAITING
        self.accepted = [(address, token)]
        self.waiting: list[Linked] = []
        self.path: Path | None = None
        self.link: Link | None = None
        self.backoff = Backoff(_FIRST_DELAY, _LONGEST_DELAY, uniform=dials._env.uniform)
        self.trouble = ""
        """Why the last attempt failed, if that is known."""
        self.redial: Timer | None = None
        self.deadline: Timer | None = None

    def change(self, state: DialState) -> None:
        """Go to the next state.

        Raises:
            RuntimeError: `state` may not follow the present one; a programming error.
        """
        if state not in NEXT[self.state]:
            raise RuntimeError(f"a dial of {self.address} cannot go from {self.state.value} to {state.value}")
        self.state = state

    def receive(self, path: Path, frame: Frame, now: float) -> None:
        """Handle WELCOME or REFUSE; other frames before them are ignored."""
        if path is not self.path:
            return
        answers, event = path.session.receive(frame, now)
        self._dials._env.outbox.say(path, *answers)
        if isinstance(event, Welcomed):
            self._dials._welcomed(self, path, event.body, now)
        elif isinstance(event, Refused):
            self._dials._refused(self, event, now)

    def lost(self, path: Path, reason: str, now: float, *, closed: bool) -> None:
        """Dial again: the agent did not answer."""
        if path is self.path:
            self._dials._again(self, now)

    def left(self, path: Path, reason: str, now: float) -> None:
        """Dial again: the agent said goodbye instead of answering."""
        self.lost(path, reason, now, closed=True)


class Dials:
    """All addresses that the router dials."""

    def __init__(self, env: Env, links: Links, heartbeats: Heartbeats, jobs_of: Callable[[str], int]) -> None:
        self._env = env
        self._links = links
        self._heartbeats = heartbeats
        self._jobs_of = jobs_of
        self._dials: list[_Dial] = []
        self._idle: dict[Link, Timer] = {}

    def __len__(self) -> int:
        return len(self._dials)

    def obtain(self, address: str, token: str, linked: Linked, now: float) -> None:
        """A link to the agent that listens at `address`, dialled now unless it is linked with that token already.

        `linked` gets `Forbidden` when the agent refuses the token, `AgentUnavailable` when it cannot be reached in
        time or refuses for another reason, `Overloaded` when too many are being dialled. `Forbidden` also tells that
        ``control.allow_targets`` does not have the router connect there.
        """
        dial = self._find(address, token)
        if dial is None:
            if len(self._dials) >= self._env.settings.bounds.dials:
                linked(None, Overloaded("too many agents are being dialled", retry_after=2), now)
                return
            dial = _Dial(self, address, token)
            self._dials.append(dial)
        elif dial.link is not None and dial.link.up:
            linked(dial.link, None, now)
            return
        dial.waiting.append(linked)
        if dial.deadline is None:
            dial.deadline = self._env.timers.at(now + self._env.settings.dial_timeout, partial(self._too_late, dial))
        if dial.state is DialState.WAITING:
            self._dial(dial, now)

    def restore(self, address: str, token: str, link: Link, now: float) -> None:
        """Dial the agent of a link that an earlier broker stored."""
        dial = _Dial(self, address, token)
        dial.link = link
        self._dials.append(dial)
        self._dial(dial, now)

    def receive(self, path: Path, frame: Frame, now: float) -> None:
        """Handle a session frame of a peer that was dialled and has not answered yet."""
        if isinstance(path.owner, _Dial):
            path.owner.receive(path, frame, now)

    def troubled(self, path: Path, text: str) -> None:
        """Note why there is no agent at the end of a dialled path."""
        if isinstance(path.owner, _Dial):
            path.owner.trouble = text

    def forbidden(self, path: Path, text: str, now: float) -> None:
        """Fail the creations that wait for an address that users may not have the router connect to."""
        dial = path.owner
        if isinstance(dial, _Dial) and dial.path is path:
            log.warning("event=target_forbidden address=%s text=%r", dial.address, text)
            self._fail(dial, Forbidden(text, code="target_forbidden"), now)

    def address_of(self, link: Link) -> tuple[str, str] | None:
        """Address and token with which a link was dialled; None if the agent dialled."""
        for dial in self._dials:
            if dial.link is link:
                return dial.address, dial.token
        return None

    def link_down(self, link: Link, now: float) -> None:
        """Dial again if the link has jobs or a creation waits for it."""
        for dial in [dial for dial in self._dials if dial.link is link]:
            self._again(dial, now)

    def discourage(self, link: Link) -> None:
        """Dial an agent that floods the router slowly from now on."""
        for dial in self._dials:
            if dial.link is link:
                dial.backoff.slow_down()

    def link_gone(self, link: Link, now: float) -> None:
        """Stop dialling the agent of a link that is gone, unless a creation waits for it."""
        for dial in [dial for dial in self._dials if dial.link is link]:
            dial.link = None
            if dial.state is DialState.LINKED:
                self._again(dial, now)
            elif dial.state is not DialState.WELCOMED and not dial.waiting:
                self._end(dial)

    def idle(self, link: Link, now: float) -> None:
        """Drop a dialled link without jobs after `polling_delay`, unless it gets one."""
        known = self._idle.pop(link, None)
        if known is not None:
            known.cancel()
        delay = self._env.settings.polling_delay
        self._idle[link] = self._env.timers.at(now + delay, partial(self._drop_if_idle, link))

    def _find(self, address: str, token: str) -> _Dial | None:
        found = None
        for dial in self._dials:
            for known_address, known_token in dial.accepted:
                if known_address == address and hmac.compare_digest(known_token.encode(), token.encode()):
                    found = dial
        return found

    def _dial(self, dial: _Dial, now: float) -> None:
        if dial.redial is not None:
            dial.redial.cancel()
            dial.redial = None
        problem = self._env.shell.why_not_dialled(dial.address)
        if problem:
            self._fail(dial, Forbidden(problem, code="agent_key_unknown"), now)
            return
        dial.change(DialState.DIALLING)
        settings = self._env.settings
        hello = {
            "kind": "router",
            **settings.auth,
            "incarnation": self._env.incarnation,
            "token": dial.token,
            "platform": settings.platform,
        }
        path = dial.path = Path(None, b"", Session(now, settings.heartbeat, hello), now)
        path.owner = dial
        self._env.shell.dial(path, dial.address)
        self._env.outbox.say(path, *path.session.start())
        self._heartbeats.watch(path)

    def _welcomed(self, dial: _Dial, path: Path, body: dict[str, object], now: float) -> None:
        dial.change(DialState.WELCOMED)
        path.security = self._env.shell.security(path)
        try:
            info = AgentInfo.from_hello(body)
        except ProtocolError as error:
            self._fail(dial, AgentUnavailable(f"the agent at {dial.address} is not understood: {error.detail}"), now)
            return
        if info.incarnation == self._env.incarnation:
            self._fail(dial, AgentUnavailable(f"what answers at {dial.address} is this router, no agent"), now)
            return
        if body.get("kind") not in (None, "agent"):
            self._fail(dial, AgentUnavailable(f"what answers at {dial.address} is no agent"), now)
            return
        if self._links.find(info.incarnation, CLIENT) is None and not self._links.make_room(info, now):
            text = f"{self._env.settings.max_agents} agents are linked already (server.max_agents)"
            self._fail(dial, Overloaded(text, retry_after=5), now)
            return
        connection = connection_uid(info.incarnation, CLIENT)
        rivals = [rival for rival in self._links.of_agent(info.uid, CLIENT) if rival.connection != connection]
        if any(rival.up for rival in rivals):
            text = f"the agent at {dial.address} says it is '{info.uid}', which is linked already, from another address"
            self._fail(dial, AgentUnavailable(text, code="uid_in_use", retry_after=5), now)
            return
        for rival in rivals:
            self._links.drop(rival, "a new incarnation of the agent took over", now)
        dial.backoff.succeeded()
        dial.link = self._links.adopt(info, CLIENT, path, now)
        dial.change(DialState.LINKED)
        for other in [other for other in self._dials if other.link is dial.link and other is not dial]:
            dial.accepted += other.accepted
            self._settle(other, dial.link, None, now)
            self._end(other)
        self._env.outbox.say(path, event_frame("linked", {"connection": connection, "mode": CLIENT}))
        self._links.opened(dial.link, now)
        self._settle(dial, dial.link, None, now)
        if not self._jobs_of(connection):
            self.idle(dial.link, now)

    def _refused(self, dial: _Dial, refusal: Refused, now: float) -> None:
        log.warning("event=dial_refused address=%s code=%s text=%r", dial.address, refusal.code, refusal.text)
        text = f"the agent at {dial.address} refused: {refusal.text or refusal.code}"
        if refusal.code == "bad_token":
            advice = "; agent.token must be one of its server.accept_tokens"
            self._fail(dial, Forbidden(text + advice, code="agent_refused"), now)
        else:
            self._fail(dial, AgentUnavailable(text, code="agent_refused", retry_after=5), now)

    def _fail(self, dial: _Dial, error: PRouterError, now: float) -> None:
        """Fail the creations that wait; dial a link that has jobs again, slowly."""
        self._settle(dial, None, error, now)
        if dial.link is None:
            self._end(dial)
        else:
            dial.backoff.slow_down()
            self._again(dial, now)

    def _again(self, dial: _Dial, now: float) -> None:
        self._hang_up(dial)
        dial.change(DialState.WAITING)
        if dial.redial is not None:
            return
        wanted = dial.waiting or (dial.link is not None and self._jobs_of(dial.link.connection))
        if not wanted:
            if dial.link is not None:
                self._links.drop(dial.link, "the connection broke and it has no job", now)
            self._end(dial)
            return
        dial.redial = self._env.timers.at(now + dial.backoff.next(), partial(self._dial, dial))

    def _too_late(self, dial: _Dial, now: float) -> None:
        dial.deadline = None
        text = f"no agent answers at {dial.address}" + (f": {dial.trouble}" if dial.trouble else "")
        self._settle(dial, None, AgentUnavailable(text, retry_after=5), now)
        if dial.link is None:
            self._end(dial)

    def _settle(self, dial: _Dial, link: Link | None, error: PRouterError | None, now: float) -> None:
        if dial.deadline is not None:
            dial.deadline.cancel()
            dial.deadline = None
        waiting, dial.waiting = dial.waiting, []
        for linked in waiting:
            linked(link, error, now)

    def _drop_if_idle(self, link: Link, now: float) -> None:
        self._idle.pop(link, None)
        if self._links.get(link.connection) is not link or self._jobs_of(link.connection):
            return
        if link.path is not None:
            self._env.outbox.say(link.path, link.path.session.bye("idle"))
        self._links.drop(link, "it had no job", now)

    def _hang_up(self, dial: _Dial) -> None:
        path, dial.path = dial.path, None
        if path is not None and path.owner is dial:
            self._heartbeats.drop(path)
            self._env.shell.forget(path)

    def _end(self, dial: _Dial) -> None:
        if dial.state is DialState.ENDED:
            return
        self._hang_up(dial)
        dial.change(DialState.ENDED)
        if dial.redial is not None:
            dial.redial.cancel()
        if dial.deadline is not None:
            dial.deadline.cancel()
        self._dials.remove(dial)
