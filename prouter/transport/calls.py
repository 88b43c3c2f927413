"""Calls to and from one neighbour, across lost paths."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from prouter.errors import ProtocolError, PRouterError
from prouter.fabric.calls import Caller, Request, Responder, Result
from prouter.fabric.frames import Frame
from prouter.fabric.retries import Retries
from prouter.transport.outbox import Outbox
from prouter.transport.runtime import Runtime

__all__ = ["Calls"]

log = logging.getLogger("prouter.transport")


class Calls:
    """Makes calls, resends them over new paths, and carries out the neighbour's.

    Args:
        outbox: takes the frames to send.
        ready: whether the session is established, so that calls may be sent.
        carry_out: carries out a call of the neighbour in a greenlet of its own. It returns the value of the reply, or
            raises `PRouterError` to fail the call.
    """

    def __init__(
        self,
        outbox: Outbox,
        runtime: Runtime,
        ready: Callable[[], bool],
        carry_out: Callable[[Request], dict[str, Any]],
    ) -> None:
        self._outbox = outbox
        self._runtime = runtime
        self._ready = ready
        self._carry_out = carry_out
        self._caller = Caller()
        self._retries = Retries()
        self._responder = Responder()
        self._results: dict[str, Callable[[Result], None]] = {}

    @property
    def pending(self) -> int:
        """Number of calls made here that have no reply yet."""
        return max(self._caller.pending, len(self._results))

    @property
    def running(self) -> int:
        """Number of the neighbour's calls that are carried out now."""
        return self._responder.running

    def ask(self, op: str, args: dict[str, Any], done: Callable[[Result], None], call_id: str | None) -> str:
        """Make a call; return its id. `done` gets the reply, unless the call is forgotten before.

        Raises:
            TooLarge: the neighbour would not accept it.
        """
        call_id, frame = self._caller.call(op, args, call_id)
        self._results[call_id] = done
        if self._retries.add(call_id, self._runtime.now(), up=self._ready()):
            self._outbox.say(frame)
        return call_id

    def forget(self, call_id: str) -> None:
        """Give a call up. Idempotent."""
        self._results.pop(call_id, None)
        self._caller.forget(call_id)
        self._retries.remove(call_id)

    # -- the path -------------------------------------------------------------------------------------------------

    def path_up(self) -> None:
        """Resend calls without a reply over a new path, except those that may be what breaks paths."""
        self._outbox.say(*self._caller.frames(self._retries.path_up(self._runtime.now())))

    def path_lost(self) -> None:
        """Fail the call that breaks every path, if there is one."""
        for call_id in self._retries.path_lost(self._runtime.now()):
            done = self._results.get(call_id)
            self.forget(call_id)
            log.error("event=call_breaks_link call=%s", call_id)
            if done is not None:
                text = "the connection broke each time this call was sent; the log of the other end may tell why"
                done(Result(call_id, {}, ProtocolError(text, code="call_breaks_link")))

    def tick(self, now: float) -> None:
        """Send calls that waited until those before them had proved harmless."""
        if self._retries.deadline is not None and self._ready():
            self._outbox.say(*self._caller.frames(self._retries.due(now)))

    # -- frames ---------------------------------------------------------------------------------------------------

    def receive_reply(self, frame: Frame) -> None:
        """Pass a REPLY on to whoever waits for it.

        Raises:
            ProtocolError: the frame is malformed.
        """
        result = self._caller.receive(frame)
        if result is not None:
            self._retries.remove(result.call_id)
            done = self._results.pop(result.call_id, None)
            if done is not None:
                done(result)

    def receive_call(self, frame: Frame) -> None:
        """Carry out a CALL, or send the reply that is remembered.

        Raises:
            ProtocolError: the frame is malformed.
        """
        todo = self._responder.receive(frame)
        if isinstance(todo, Request):
            self._runtime.spawn(self._run, todo)
        elif todo is not None:
            self._outbox.say(todo)

    def _run(self, request: Request) -> None:
        try:
            reply = self._responder.reply(request.call_id, self._carry_out(request))
        except PRouterError as error:
            reply = self._responder.reply(request.call_id, error=error)
        except Exception as error:
            # The edge of the greenlet: the caller has to hear something, and only the type is safe to tell.
            log.exception("event=call_failed op=%s call=%s", request.op, request.call_id)
            text = f"{request.op} failed: {type(error).__name__}"
            reply = self._responder.reply(request.call_id, error=PRouterError(text))
        # Without a path the reply is remembered, and the caller resends the call over the next one.
        if self._ready():
            self._outbox.say(reply)
