"""Calls: request and reply that happen once, however often they are asked.

The caller chooses a call id, keeps the call until it is answered, and repeats it whenever a path comes (back) up. The
responder remembers what it answered: a repeated call gets the same reply, one still in progress is not started again.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any, NamedTuple

import msgpack

from prouter.errors import ProtocolError, PRouterError, TooLarge, from_wire
from prouter.fabric.bounds import MAX_CONTROL
from prouter.fabric.frames import CALL, EVENT, REPLY, Frame, pack_body, unpack_body

__all__ = ["Caller", "Request", "Responder", "Result", "event_frame", "event_name", "read_event"]

_HEAD = 1024
"""Bytes at the beginning of a payload that hold its first field: the id of a call or reply, the name of an event."""
_MOST_DETAIL = 4096
"""Characters of an error's text that cross the fabric."""


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
    """The asking end of calls to one peer.

    Args:
        most: bytes of a reply that are taken; a larger one fails its call.
    """

    def __init__(self, most: int = MAX_CONTROL) -> None:
        self._most = most
        self._prefix = os.urandom(8).hex()
        self._count = 0
        self._pending: dict[str, Frame] = {}

    @property
    def pending(self) -> int:
        """Calls not answered yet."""
        return len(self._pending)

    def call(self, op: str, args: dict[str, Any], call_id: str | None = None) -> tuple[str, Frame]:
        """A new call: its id and the frame to send now, and again whenever the path comes up (`repeat`).

        Raises:
            TooLarge: the peer would not take it.
        """
        if call_id is None:
            self._count += 1
            call_id = f"{self._prefix}-{self._count}"
        payload = pack_body({"id": call_id, "op": op, "args": args})
        if len(payload) > MAX_CONTROL:
            raise TooLarge(f"the call {op} has {len(payload)} bytes, more than the {MAX_CONTROL} that can be sent")
        frame = Frame(CALL, payload=payload)
        self._pending[call_id] = frame
        return call_id, frame

    def frames(self, call_ids: list[str]) -> list[Frame]:
        """The frames of these calls, as far as they are unanswered."""
        return [self._pending[call_id] for call_id in call_ids if call_id in self._pending]

    def forget(self, call_id: str) -> None:
        """Give a call up; a late reply is ignored."""
        self._pending.pop(call_id, None)

    def receive(self, frame: Frame) -> Result | None:
        """The result a REPLY frame brings, None for one that nobody waits for.

        Raises:
            ProtocolError: the frame is malformed.
        """
        if len(frame.payload) > self._most:
            return self._too_large(frame)
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

    def _too_large(self, frame: Frame) -> Result | None:
        """A reply that is not taken fails its call, which would be repeated for ever otherwise."""
        call_id = _first_field(frame.payload, "id")
        if call_id is None:
            raise ProtocolError(f"a reply of {len(frame.payload)} bytes is larger than {self._most}")
        if self._pending.pop(call_id, None) is None:
            return None
        text = f"the answer has {len(frame.payload)} bytes, more than the {self._most} that are taken"
        return Result(call_id, {}, ProtocolError(text, code="answer_too_large"))


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
        if len(frame.payload) > MAX_CONTROL:
            return self._refused(frame)
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
            return self._answered(call_id, _packed_error(call_id, error), keep)
        payload = pack_body({"id": call_id, "value": value or {}})
        return self._answered(call_id, _fitting(call_id, payload), keep)

    def reply_packed(self, call_id: str, value: bytes) -> Frame:
        """Answer a call that only reads with a value that is packed already (`pack_body`)."""
        payload = b"\x82" + _packed("id") + _packed(call_id) + _packed("value") + value
        return self._answered(call_id, _fitting(call_id, payload), keep=False)

    def forget(self, call_id: str) -> None:
        """Nobody waits for the answer to this call any more."""
        self._running.discard(call_id)

    def _refused(self, frame: Frame) -> Frame:
        """The answer to a call that is not taken.

        Raises:
            ProtocolError: it has no id.
        """
        text = f"the call has {len(frame.payload)} bytes, more than the {MAX_CONTROL} that are taken"
        call_id = _first_field(frame.payload, "id")
        if call_id is None:
            raise ProtocolError(text)
        return Frame(REPLY, payload=_packed_error(call_id, TooLarge(text)))

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


def _packed_error(call_id: str, error: PRouterError) -> bytes:
    wire = error.to_wire()
    if len(error.detail) > _MOST_DETAIL:
        wire["detail"] = error.detail[: _MOST_DETAIL - 1] + "…"
    return pack_body({"id": call_id, "error": wire})


def _fitting(call_id: str, payload: bytes) -> bytes:
    """The payload of an answer, or of an error instead of an answer that the peer would not take."""
    if len(payload) <= MAX_CONTROL:
        return payload
    text = f"the answer has {len(payload)} bytes, more than the {MAX_CONTROL} that can be sent"
    return _packed_error(call_id, PRouterError(text, code="answer_too_large"))


def _first_field(payload: bytes, name: str) -> str | None:
    """The text that a body's first field holds, if that is called so, without unpacking the rest."""
    unpacker = msgpack.Unpacker(raw=False, max_buffer_size=_HEAD)
    unpacker.feed(bytes(payload[:_HEAD]))
    try:
        unpacker.read_map_header()
        if unpacker.unpack() != name:
            return None
        value = unpacker.unpack()
    except (ValueError, msgpack.UnpackException):
        return None
    return value if isinstance(value, str) else None


def event_frame(name: str, body: dict[str, Any]) -> Frame:
    """News for a peer; `read_event` reads it.

    Raises:
        ProtocolError: the peer would not take it.
    """
    payload = pack_body({"event": name, "body": body})
    if len(payload) > MAX_CONTROL:
        raise ProtocolError(f"the event {name} has {len(payload)} bytes, more than the {MAX_CONTROL} that can be sent")
    return Frame(EVENT, payload=payload)


def event_name(frame: Frame) -> str:
    """Name of an EVENT frame without the cost of unpacking its body; empty when the body does not begin with it."""
    return _first_field(frame.payload, "event") or ""


def read_event(frame: Frame) -> tuple[str, dict[str, Any]]:
    """Name and body of an EVENT frame.

    Raises:
        ProtocolError: the frame is malformed.
    """
    if len(frame.payload) > MAX_CONTROL:
        raise ProtocolError(f"an event of {len(frame.payload)} bytes is larger than {MAX_CONTROL}")
    body = unpack_body(frame.payload)
    name, content = body.get("event"), body.get("body")
    if not isinstance(name, str) or not isinstance(content, dict):
        raise ProtocolError("an event needs a name and a body")
    return name, content
