"""Calls: requests with a reply, carried out once however often they are sent.

The caller chooses a call id, keeps the call until the reply comes, and resends it over every new path. The responder
remembers its replies: a call that comes again gets the same reply, and one that is in progress is not started again.
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
"""Characters of an error's text that are sent."""


class Result(NamedTuple):
    """The reply to a call: `value` when it succeeded, else `error`."""

    call_id: str
    value: dict[str, Any]
    error: PRouterError | None


class Request(NamedTuple):
    """A call to carry out and to answer with `Responder.reply`."""

    call_id: str
    op: str
    args: dict[str, Any]


class Caller:
    """The end that makes calls to one peer.

    Args:
        most: bytes of a reply that are accepted; a larger one fails its call.
    """

    def __init__(self, most: int = MAX_CONTROL) -> None:
        self._most = most
        # Ids must be unique for ever: the responder would answer a call that reuses one with an old reply.
        self._prefix = os.urandom(8).hex()
        self._count = 0
        self._pending: dict[str, Frame] = {}

    @property
    def pending(self) -> int:
        """Number of calls without a reply."""
        return len(self._pending)

    def call(self, op: str, args: dict[str, Any], call_id: str | None = None) -> tuple[str, Frame]:
        """Make a call; return its id and the frame to send now, and again over every new path (`frames`).

        Args:
            call_id: to be used instead of an id of its own, for a call that was made before, by another process even.

        Raises:
            TooLarge: the peer would not accept it.
        """
        if call_id is None:
            self._count += 1
            call_id = f"{self._prefix}-{self._count}"
        payload = pack_body({"id": call_id, "op": op, "args": args})
        if len(payload) > MAX_CONTROL:
            raise TooLarge(f"the call {op} has {len(payload)} bytes, more than the {MAX_CONTROL} that can be sent")
        # Kept encoded: the arguments may change before the call is resent.
        frame = Frame(CALL, payload=payload)
        self._pending[call_id] = frame
        return call_id, frame

    def frames(self, call_ids: list[str]) -> list[Frame]:
        """Return the frames of those of these calls that have no reply yet."""
        return [self._pending[call_id] for call_id in call_ids if call_id in self._pending]

    def forget(self, call_id: str) -> None:
        """Give a call up; its reply is ignored. Idempotent."""
        self._pending.pop(call_id, None)

    def receive(self, frame: Frame) -> Result | None:
        """Return the result that a REPLY frame brings; None if nobody waits for it.

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
        """Fail the call of a reply that is too large; it would be resent over every new path otherwise."""
        call_id = _first_field(frame.payload, "id")
        if call_id is None:
            raise ProtocolError(f"a reply of {len(frame.payload)} bytes is larger than {self._most}")
        if self._pending.pop(call_id, None) is None:
            return None
        text = f"the reply has {len(frame.payload)} bytes, more than the {self._most} that are accepted"
        return Result(call_id, {}, ProtocolError(text, code="answer_too_large"))


class Responder:
    """The end that carries out one peer's calls.

    Args:
        remember: how many replies are remembered.
        remember_bytes: how many bytes they may have together; the last one is remembered whatever its size.
    """

    def __init__(self, remember: int = 4096, remember_bytes: int = 1024 * 1024) -> None:
        self._remember = remember
        self._remember_bytes = remember_bytes
        self._replies: OrderedDict[str, Frame] = OrderedDict()
        self._size = 0
        self._running: set[str] = set()

    @property
    def running(self) -> int:
        """Number of calls that were received and not replied to."""
        return len(self._running)

    def receive(self, frame: Frame) -> Request | Frame | None:
        """Return what to do about a CALL frame.

        Returns:
            A `Request` to carry out, a frame to send (the remembered reply), or None: the call is in progress.

        Raises:
            ProtocolError: the frame is malformed.
        """
        # Before decoding, which is what a large payload costs.
        if len(frame.payload) > MAX_CONTROL:
            return self._refused(frame)
        body = unpack_body(frame.payload)
        call_id, op, args = body.get("id"), body.get("op"), body.get("args")
        if not isinstance(call_id, str) or not isinstance(op, str) or not isinstance(args, dict):
            raise ProtocolError("a call needs id, op and args")
        if call_id in self._running:
            return None  # Its reply goes out over the present path when it is there.
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
        """Reply to a call with a value or an error; return the frame to send.

        Args:
            keep: whether to remember the reply, in case the call comes again. A call that only reads may as well be
                carried out again.
        """
        if error is not None:
            return self._answered(call_id, _packed_error(call_id, error), keep)
        payload = pack_body({"id": call_id, "value": value or {}})
        return self._answered(call_id, _fitting(call_id, payload), keep)

    def reply_packed(self, call_id: str, value: bytes) -> Frame:
        """Reply with a value that is encoded already (`pack_body`) to a call that only reads."""
        # A msgpack map of two entries, written by hand so that a large value is not decoded and encoded again.
        payload = b"\x82" + _packed("id") + _packed(call_id) + _packed("value") + value
        return self._answered(call_id, _fitting(call_id, payload), keep=False)

    def forget(self, call_id: str) -> None:
        """Note that nobody waits for the reply to this call any more."""
        self._running.discard(call_id)

    def _refused(self, frame: Frame) -> Frame:
        """Return the reply to a call that is too large.

        Raises:
            ProtocolError: the call has no id.
        """
        text = f"the call has {len(frame.payload)} bytes, more than the {MAX_CONTROL} that are accepted"
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
            # The newest reply stays whatever its size: it is the one whose loss is most likely.
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
    """Return the payload, or that of an error if the peer would not accept so much."""
    if len(payload) <= MAX_CONTROL:
        return payload
    text = f"the reply has {len(payload)} bytes, more than the {MAX_CONTROL} that can be sent"
    return _packed_error(call_id, PRouterError(text, code="answer_too_large"))


def _first_field(payload: bytes, name: str) -> str | None:
    """Return the text in a body's first field if the field is called `name`; the rest is not decoded."""
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
    """Make an EVENT, which `read_event` reads.

    Raises:
        ProtocolError: the peer would not accept so much.
    """
    payload = pack_body({"event": name, "body": body})
    if len(payload) > MAX_CONTROL:
        raise ProtocolError(f"the event {name} has {len(payload)} bytes, more than the {MAX_CONTROL} that can be sent")
    return Frame(EVENT, payload=payload)


def event_name(frame: Frame) -> str:
    """Return the name of an EVENT without decoding its body; empty if the body does not begin with it."""
    return _first_field(frame.payload, "event") or ""


def read_event(frame: Frame) -> tuple[str, dict[str, Any]]:
    """Return name and body of an EVENT.

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
