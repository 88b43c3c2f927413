"""Calls to agents: sent when the agent is there, repeated when it is back, given up when it stays away too long."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from prouter.broker.env import Done, Env
from prouter.broker.links import Link
from prouter.broker.timers import Timer
from prouter.errors import AgentUnavailable, Overloaded, ProtocolError, TooLarge
from prouter.fabric.calls import event_frame
from prouter.fabric.frames import Frame

__all__ = ["Forwarder"]


@dataclass(slots=True)
class _Pending:
    done: Done
    timer: Timer | None = None


class Forwarder:
    """See the module's docstring."""

    def __init__(self, env: Env) -> None:
        self._env = env
        self._pending: dict[Link, dict[str, _Pending]] = {}

    @property
    def pending(self) -> int:
        """Calls without an answer, all agents together."""
        return sum(len(calls) for calls in self._pending.values())

    def call(
        self, link: Link, op: str, args: dict[str, Any], done: Done, now: float, *, limit: float | None = None
    ) -> None:
        """Ask the agent; `done` is called exactly once.

        Args:
            limit: seconds for the answer, whatever happens; without it an agent that is there may take its time.
        """
        calls = self._pending.setdefault(link, {})
        if len(calls) >= self._env.settings.bounds.link_calls:
            done({}, Overloaded(f"too many calls wait for agent '{link.info.uid}'", retry_after=1), now)
            return
        try:
            call_id, frame = link.caller.call(op, args)
        except TooLarge as error:
            done({}, error, now)
            return
        pending = calls[call_id] = _Pending(done)
        if link.path is not None:
            self._env.outbox.say(link.path, frame)
        if limit is not None:
            self._limit(link, call_id, pending, now + limit)
        elif link.path is None:
            self._limit(link, call_id, pending, now + self._env.settings.hold)

    def tell(self, link: Link, name: str, body: dict[str, Any]) -> None:
        """An event for the agent, lost when it is away."""
        if link.path is not None:
            self._env.outbox.say(link.path, event_frame(name, body))

    def reply(self, link: Link, frame: Frame, now: float) -> None:
        """A REPLY frame of the agent.

        Raises:
            ProtocolError: the frame is malformed.
        """
        result = link.caller.receive(frame)
        if result is None:
            return
        if isinstance(result.error, ProtocolError) and result.error.code == "answer_too_large":
            self._env.malformed(link.path, result.error)
        pending = self._pending.get(link, {}).pop(result.call_id, None)
        if pending is not None:
            if pending.timer is not None:
                pending.timer.cancel()
            pending.done(result.value, result.error, now)

    def link_up(self, link: Link) -> None:
        """The agent is (back) there: ask everything again."""
        for pending in self._pending.get(link, {}).values():
            if pending.timer is not None:
                pending.timer.cancel()
                pending.timer = None
        if link.path is not None:
            self._env.outbox.say(link.path, *link.caller.repeat())

    def link_down(self, link: Link, now: float) -> None:
        """The agent is away: calls in flight wait for it, for a while."""
        until = now + self._env.settings.resume_timeout
        for call_id, pending in self._pending.get(link, {}).items():
            if pending.timer is None:
                self._limit(link, call_id, pending, until)

    def link_gone(self, link: Link, reason: str, now: float) -> None:
        """The agent will not come back."""
        for call_id, pending in self._pending.pop(link, {}).items():
            link.caller.forget(call_id)
            if pending.timer is not None:
                pending.timer.cancel()
            pending.done({}, AgentUnavailable(f"agent '{link.info.uid}' is gone: {reason}", code="agent_lost"), now)

    def _limit(self, link: Link, call_id: str, pending: _Pending, at: float) -> None:
        pending.timer = self._env.timers.at(at, partial(self._give_up, link, call_id))

    def _give_up(self, link: Link, call_id: str, now: float) -> None:
        pending = self._pending.get(link, {}).pop(call_id, None)
        link.caller.forget(call_id)
        if pending is not None:
            text = "does not answer" if link.up else "is away"
            pending.done({}, AgentUnavailable(f"agent '{link.info.uid}' {text}", retry_after=2), now)
