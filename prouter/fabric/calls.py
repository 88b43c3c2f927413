"""Calls: request and reply that happen once, however often they are asked.

The caller chooses a call id, keeps the call until it is answered, and repeats it whenever a path comes (back) up. The
responder remembers what it answered: a repeated call gets the same reply, one still in progress is not started again.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any, NamedTuple

import msgpack

from prouter.errors import ProtocolError, PRouterError, from_wire
from prouter.fabric.frames import CALL, EVENT, REPLY, Frame, pack_body, unpack_body

__all__ = ["Caller", "Request", "Responder", "Result", "event_frame", "read_event"]


class Result(NamedTuple):
    """The answer to a call: `value` when it succeeded, else `error`."""

    call_id: str
    value: dict[str, Any]
    error: PRouterError | None


class Request(NamedTuple):
    """A call to carry out and to answer with `Responder.reply`."""

    call_id: str
    op: str
    args: dict[str, Any]


class Caller:
    """The asking end of calls to one peer."""

    def __init__(self) -> None:
        self._prefix = os.urandom(8).hex()
        self._count = 0
        self._pending: dict[str, Frame] = {}

    @property
    def pending(self) -> int:
        """Calls not answered yet."""
        return len(self._pending)

    def call(self, op: str, args: dict[str, Any], call_id: str | None = None) -> tuple[str, Frame]:
        """A new call: its id and the frame to send now, and again whenever the path comes up (`repeat`)."""
        if call_id is None:
            self._count += 1
            call_id = f"{self._prefix}-{self._count}"
        frame = Frame(CALL, payload=pack_body({"id": call_id, "op": op, "args": args}))
        self._pending[call_id] = frame
        return call_id, frame

    def repeat(self) -> list[Frame]:
        """The frames of all unanswered calls, oldest first."""
        return list(self._pending.values())

    def forget(self, call_id: str) -> None:
        """Give a call up; a late reply is ignored."""
        self._pending.pop(call_id, None)

    def receive(self, frame: Frame) -> Result | None:
        """The result a REPLY frame brings, None for one that nobody waits for.

        Raises:
            ProtocolError: the frame is malformed.
        """
        body = unpack_body(frame.payload)
        call_id = body.get("id")
        if not isinstance(call_id, str):
            raise ProtocolError("a reply needs an id")
        if self._pending.pop(call_id, None) is None:
            return None
        error = body.get("error")
        if isinstance(error, dict):
            return Result(call_id, {}, from_wire(error))
        value = body.get("value")
        return Result(call_id, value if isinstance(value, dict) else {}, None)


class Responder:
    """The answering end of calls from one peer.

    Args:
        remember: how many answered calls are remembered.
        remember_bytes: how many bytes of answers; the last one always is.
    """

    def __init__(self, remember: int = 4096, remember_bytes: int = 1024 * 1024) -> None:
        self._remember = remember
        self._remember_bytes = remember_bytes
        self._replies: OrderedDict[str, Frame] = OrderedDict()
        self._size = 0
        self._running: set[str] = set()

    @property
    def running(self) -> int:
        """Calls received and not answered yet."""
        return len(self._running)

    def receive(self, frame: Frame) -> Request | Frame | None:
        """What to do about a CALL frame: carry out a `Request`, send a remembered reply, or nothing (it is in
        progress).

        Raises:
            ProtocolError: the frame is malformed.
        """
        body = unpack_body(frame.payload)
        call_id, op, args = body.get("id"), body.get("op"), body.get("args")
        if not isinstance(call_id, str) or not isinstance(op, str) or not isinstance(args, dict):
            raise ProtocolError("a call needs id, op and args")
        if call_id in self._running:
            return None
        known = self._replies.get(call_id)
        if known is not None:
            return known
        self._running.add(call_id)
        return Request(call_id, op, args)

    def reply(
        self,
        call_id: str,
        value: dict[str, Any] | None = None,
        error: PRouterError | None = None,
        *,
        keep: bool = True,
    ) -> Frame:
        """Answer a call; the frame to send.

        Args:
            keep: whether to remember the answer for repeats; calls that only read may as well be carried out again.
        """
        if error is not None:
            return self._answered(call_id, pack_body({"id": call_id, "error": error.to_wire()}), keep)
        return self._answered(call_id, pack_body({"id": call_id, "value": value or {}}), keep)

    def reply_packed(self, call_id: str, value: bytes) -> Frame:
        """Answer a call that only reads with a value that is packed already (`pack_body`)."""
        return self._answered(
            call_id, b"\x82" + _packed("id") + _packed(call_id) + _packed("value") + value, keep=False
        )

    def forget(self, call_id: str) -> None:
        """Nobody waits for the answer to this call any more."""
        self._running.discard(call_id)

    def _answered(self, call_id: str, payload: bytes, keep: bool) -> Frame:
        self._running.discard(call_id)
        frame = Frame(REPLY, payload=payload)
        if keep:
            self._replies[call_id] = frame
            self._size += len(payload)
            while len(self._replies) > self._remember or (self._size > self._remember_bytes and len(self._replies) > 1):
                self._size -= len(self._replies.popitem(last=False)[1].payload)
        return frame


def _packed(text: str) -> bytes:
    packed: bytes = msgpack.packb(text)
    return packed


def event_frame(name: str, body: dict[str, Any]) -> Frame:
    """News for a peer; `read_event` reads it."""
    return Frame(EVENT, payload=pack_body({"event": name, "body": body}))


def read_event(frame: Frame) -> tuple[str, dict[str, Any]]:
    """Name and body of an EVENT frame.

    Raises:
        ProtocolError: the frame is malformed.
    """
    body = unpack_body(frame.payload)
    name, content = body.get("event"), body.get("body")
    if not isinstance(name, str) or not isinstance(content, dict):
        raise ProtocolError("an event needs a name and a body")
    return name, content
