"""Calls to agents: sent while the agent is reachable, resent when it is back, failed when it stays away too long."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

from prouter.broker.base.env import Done, Env
from prouter.broker.base.switch import Path
from prouter.broker.base.timers import Timer
from prouter.broker.links.link import Link
from prouter.errors import AgentUnavailable, Overloaded, ProtocolError, PRouterError, TooLarge
from prouter.fabric.calls import event_frame
from prouter.fabric.frames import Frame
from prouter.fabric.retries import Retries

__all__ = ["Forwarder"]

log = logging.getLogger("prouter.broker")

_REFUSED = 60.0
"""Seconds for which a call that broke the link each time fails at once, whoever makes it."""


@dataclass(slots=True)
class _Pending:
    """A call without a reply.

    Attributes:
        timer: gives the call up.
        limited: whether it does so even if the agent is reachable meanwhile.
    """

    done: Done
    about: str
    timer: Timer | None = None
    limited: bool = False


class Forwarder:
    """All calls to agents that have no reply yet."""

    def __init__(self, env: Env) -> None:
        self._env = env
        self._pending: dict[Link, dict[str, _Pending]] = {}
        self._retries: dict[Link, Retries] = {}
        self._up: set[Link] = set()
        self._refused: dict[tuple[str, str], float] = {}
        """By connection and call: until when it fails at once."""

    @property
    def pending(self) -> int:
        """How many calls have no reply, all agents together."""
        return sum(len(calls) for calls in self._pending.values())

    def call(
        self, link: Link, op: str, args: dict[str, Any], done: Done, now: float, *, limit: float | None = None
    ) -> None:
        """Send a call to the agent; `done` is called exactly once.

        Args:
            limit: seconds for the reply, whatever happens. Without it a reachable agent may take any time.
        """
        about = f"{op} {args.get('uid', '')}"
        if now < self._refused.get((link.connection, about), now):
            done({}, self._breaks(link, op), now)
            return
        calls = self._pending.setdefault(link, {})
        if len(calls) >= self._env.settings.bounds.link_calls:
            done({}, Overloaded(f"too many calls wait for agent '{link.info.uid}'", retry_after=1), now)
            return
        try:
            call_id, frame = link.caller.call(op, args)
        except TooLarge as error:
            done({}, error, now)
            return
        pending = calls[call_id] = _Pending(done, about, limited=limit is not None)
        retries = self._retries.setdefault(link, Retries())
        if retries.add(call_id, now, up=link.path is not None) and link.path is not None:
            self._env.outbox.say(link.path, frame)
        if limit is not None:
            self._limit(link, call_id, pending, now + limit)
        elif link.path is None:
            self._limit(link, call_id, pending, now + self._env.settings.hold)

    def tell(self, link: Link, name: str, body: dict[str, Any]) -> None:
        """Send an event to the agent; it is lost if the agent is away."""
        if link.path is not None:
            self._env.outbox.say(link.path, event_frame(name, body))

    def reply(self, link: Link, frame: Frame, now: float) -> None:
        """Handle a REPLY frame of the agent.

        Raises:
            ProtocolError: the frame is malformed.
        """
        result = link.caller.receive(frame)
        if result is None:
            return
        if isinstance(result.error, ProtocolError) and result.error.code == "answer_too_large":
            self._env.malformed(link.path, result.error)
        pending = self._take(link, result.call_id)
        if pending is not None:
            if pending.timer is not None:
                pending.timer.cancel()
            pending.done(result.value, result.error, now)

    def link_up(self, link: Link) -> None:
        """Send all calls again, except those that seem to have broken the path."""
        if link in self._up:
            self._lost(link, self._env.now)  # The new path replaces one whose end nobody noticed.
        self._up.add(link)
        for pending in self._pending.get(link, {}).values():
            if pending.timer is not None and not pending.limited:
                pending.timer.cancel()
                pending.timer = None
        retries = self._retries.get(link)
        if link.path is not None and retries is not None:
            self._env.outbox.say(link.path, *link.caller.frames(retries.path_up(self._env.now)))
            self._wait_to_send(link, retries)

    def link_down(self, link: Link, now: float) -> None:
        """Let calls in flight wait for the agent, for `resume_timeout`."""
        self._lost(link, now)
        until = now + self._env.settings.resume_timeout
        for call_id, pending in self._pending.get(link, {}).items():
            if pending.timer is None:
                self._limit(link, call_id, pending, until)

    def link_gone(self, link: Link, reason: str, now: float) -> None:
        """Fail all calls to an agent that does not come back."""
        self._up.discard(link)
        self._retries.pop(link, None)
        for call_id, pending in self._pending.pop(link, {}).items():
            link.caller.forget(call_id)
            if pending.timer is not None:
                pending.timer.cancel()
            pending.done({}, AgentUnavailable(f"agent '{link.info.uid}' is gone: {reason}", code="agent_lost"), now)

    def _limit(self, link: Link, call_id: str, pending: _Pending, at: float) -> None:
        pending.timer = self._env.timers.at(at, partial(self._give_up, link, call_id))

    def _give_up(self, link: Link, call_id: str, now: float) -> None:
        pending = self._take(link, call_id)
        link.caller.forget(call_id)
        if pending is not None:
            text = "does not answer" if link.up else "is away"
            pending.done({}, AgentUnavailable(f"agent '{link.info.uid}' {text}", retry_after=2), now)

    def _take(self, link: Link, call_id: str) -> _Pending | None:
        """Forget a call that is over."""
        retries = self._retries.get(link)
        if retries is not None:
            retries.remove(call_id)
        return self._pending.get(link, {}).pop(call_id, None)

    def _lost(self, link: Link, now: float) -> None:
        """Fail the calls that must have broken the path which was lost."""
        self._up.discard(link)
        retries = self._retries.get(link)
        for call_id in retries.path_lost(now) if retries is not None else ():
            pending = self._take(link, call_id)
            link.caller.forget(call_id)
            if pending is None:
                continue
            if pending.timer is not None:
                pending.timer.cancel()
            self._refused = {key: until for key, until in self._refused.items() if until > now}
            self._refused[(link.connection, pending.about)] = now + _REFUSED
            log.error("event=call_breaks_link link=%s call=%r", link.connection, pending.about)
            pending.done({}, self._breaks(link, pending.about.partition(" ")[0]), now)

    def _breaks(self, link: Link, op: str) -> PRouterError:
        agent = f"agent '{link.info.uid}'"
        text = f"the connection to {agent} broke each time the router sent it {op}; the agent's log may tell why"
        return ProtocolError(text, code="call_breaks_link")

    def _wait_to_send(self, link: Link, retries: Retries) -> None:
        """Send the calls that are held back once it is time."""
        if retries.deadline is not None:
            self._env.timers.at(retries.deadline, partial(self._send_due, link, link.path))

    def _send_due(self, link: Link, path: Path | None, now: float) -> None:
        retries = self._retries.get(link)
        if retries is not None and path is not None and link.path is path:
            self._env.outbox.say(path, *link.caller.frames(retries.due(now)))
            self._wait_to_send(link, retries)
