"""Sessions: who is at the other end of a path, and whether it is alive.

The dialler sends HELLO until the listener answers with WELCOME or REFUSE. From then on each side sends PING after a
time of silence, and takes the peer for lost after `LOST_AFTER` heartbeats of silence. A side that hears its peer all
the time asks nothing. It sends a PONG unasked now and then, since a PING of the peer may be stuck behind the very bytes
that it hears. A listener with very many diallers has them ask less often: its PONG tells how long to wait. States::

    dialler    HELLO_SENT --WELCOME--> READY --silence or BYE--> LOST
               HELLO_SENT --REFUSE--> REFUSED;  HELLO_SENT --silence--> LOST
    listener   WAITING --HELLO, `welcome()`--> READY --silence or BYE--> LOST
               WAITING --HELLO, `refuse()`--> REFUSED

A session belongs to one path. After LOST or REFUSED the dialler needs a new path and a new session: a new socket, too,
so that nothing of the earlier path can arrive on it.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

from prouter.fabric.frames import BYE, HELLO, PING, PONG, REFUSE, VERSION, WELCOME, Frame, pack_body, unpack_body

__all__ = [
    "LATE",
    "LISTENER_PATIENCE",
    "LONGEST_PACE",
    "LOST_AFTER",
    "SIGN_OF_LIFE",
    "Greeted",
    "Lost",
    "Refused",
    "Session",
    "SessionEvent",
    "SessionState",
    "Welcomed",
]

LOST_AFTER = 3
"""Heartbeat intervals of silence after which a peer is lost."""

LATE = 0.05
"""Seconds by which a process may be late with its own timers. What goes beyond is time in which it did not listen, so
nobody's silence meanwhile counts (`Session.excuse`)."""

LISTENER_PATIENCE = 1.5
"""Heartbeat intervals of silence after which a listener sends PING. A dialler does so after one, so that mostly only
one side asks."""

SIGN_OF_LIFE = 1.5
"""Heartbeat intervals after the last PING or PONG to the peer, after which a side sends a PONG unasked. Idle peers
exchange PING and PONG more often than that, and send none."""

LONGEST_PACE = 60.0
"""Seconds between heartbeats that a dialler has itself be told, at most."""

_LONGEST_TEXT = 1024
"""Characters of the text with which a peer refuses or says goodbye."""


class SessionState(Enum):
    """State of one side; the module's docstring draws the transitions."""

    WAITING = "waiting"
    HELLO_SENT = "hello_sent"
    READY = "ready"
    REFUSED = "refused"
    LOST = "lost"


class Greeted(NamedTuple):
    """Listener: the peer sent HELLO with `body`; answer with `Session.welcome` or `Session.refuse`."""

    body: dict[str, Any]


class Welcomed(NamedTuple):
    """Dialler: the peer accepted; `body` describes it."""

    body: dict[str, Any]


class Refused(NamedTuple):
    """Dialler: the peer refused, for the reason `code` and `text`."""

    code: str
    text: str


class Lost(NamedTuple):
    """The session is over: the peer was silent for too long, or sent BYE."""

    reason: str


SessionEvent = Greeted | Welcomed | Refused | Lost


class Session:
    """One side of a session over one path.

    Args:
        now: the current time, seconds of any monotonic clock; other methods take the same clock.
        heartbeat: seconds of silence after which a dialler sends PING.
        hello: the body of the dialler's HELLO; None makes a listener.
        welcomed_within: heartbeats of silence after which a dialler that was not welcomed yet gives up. A listener that
            thousands dial at once has less time for each; whoever gives up and comes again makes it have even less.

    Attributes:
        heartbeat: in force now: what was given, or longer if a listener's `pace` says so.
        state: where the session is.
        latency: seconds between the last PING and its PONG, None before the first.
        answered: number of the latest PING that was answered.
    """

    def __init__(
        self,
        now: float,
        heartbeat: float,
        hello: dict[str, Any] | None = None,
        *,
        welcomed_within: int = LOST_AFTER,
    ) -> None:
        self.heartbeat = self._own = heartbeat
        self.state = SessionState.WAITING
        self.latency: float | None = None
        self.answered = 0
        self._hello = hello
        self._pace = 0.0
        self._heard = now
        self._asked = now
        self._spoke = now
        self._welcomed_within = welcomed_within
        self._pings: dict[int, float] = {}
        self._ping_count = 0
        if hello is not None:
            self.state = SessionState.HELLO_SENT

    def start(self) -> list[Frame]:
        """Return the dialler's first frames; a listener has none."""
        return [self._hello_frame()] if self._hello is not None else []

    def welcome(self, body: dict[str, Any]) -> Frame:
        """Accept the peer."""
        self.state = SessionState.READY
        return Frame(WELCOME, payload=pack_body(body))

    def refuse(self, code: str, text: str) -> Frame:
        """Refuse the peer; nothing is sent afterwards."""
        self.state = SessionState.REFUSED
        return Frame(REFUSE, payload=pack_body({"code": code, "text": text}))

    def bye(self, reason: str) -> Frame:
        """Close the session on purpose."""
        self.state = SessionState.LOST
        return Frame(BYE, payload=pack_body({"reason": reason}))

    def pace(self, seconds: float) -> None:
        """Listener: have the dialler wait for so long before it asks, from its next PING on; 0 for its own heartbeat.

        Both ends keep to the longer time, so each is patient with the other.
        """
        self._pace = seconds

    def heard(self, now: float) -> None:
        """Note that something arrived from the peer, be it a stream's bytes."""
        self._heard = now

    def excuse(self, seconds: float, now: float) -> None:
        """Take `seconds` off the peer's silence, in which this end did not listen: it was stopped, or without a CPU."""
        # Not beyond now: an excuse makes up for a pause, it is no credit for the next one.
        self._heard = min(now, self._heard + seconds)

    def receive(self, frame: Frame, now: float) -> tuple[list[Frame], SessionEvent | None]:
        """Process one session frame; return the frames to answer with, and what happened.

        A frame that does not fit the state is ignored: it may be a late one.

        Raises:
            ProtocolError: the body is malformed.
        """
        self._heard = now
        kind = frame.type
        if kind == PING:
            # Before WELCOME the peer is unauthenticated, and learns nothing by asking.
            if self.state is not SessionState.READY:
                return [], None
            self._spoke = now
            if self._hello is None:
                self._keep_to(self._pace)
            return [self._pong(frame.offset)], None
        if kind == PONG:
            if self._hello is not None:
                self._keep_to(min(frame.ack / 1000, LONGEST_PACE))
            sent = self._pings.pop(frame.offset, None)
            if sent is not None:
                self.latency = now - sent
                self.answered = max(self.answered, frame.offset)
            return [], None
        if kind == HELLO and self.state is SessionState.WAITING:
            return [], Greeted(unpack_body(frame.payload))
        if kind == WELCOME and self.state is SessionState.HELLO_SENT:
            # Decoded first: a malformed WELCOME raises, and must not leave the session ready.
            welcomed = Welcomed(unpack_body(frame.payload))
            self.state = SessionState.READY
            return [], welcomed
        if kind == REFUSE and self.state in (SessionState.HELLO_SENT, SessionState.READY):
            body = unpack_body(frame.payload)
            self.state = SessionState.REFUSED
            return [], Refused(_text(body, "code", "refused"), _text(body, "text", ""))
        if kind == BYE and self.state is SessionState.READY:
            lost = Lost(_text(unpack_body(frame.payload), "reason", "goodbye"))
            self.state = SessionState.LOST
            return [], lost
        return [], None

    def tick(self, now: float) -> tuple[list[Frame], SessionEvent | None]:
        """Do what is due; call it several times per heartbeat interval, or at `deadline`.

        Returns:
            The frames to send, and `Lost` if the peer was silent for too long.
        """
        if self.state in (SessionState.LOST, SessionState.REFUSED):
            return [], None
        silence = now - self._heard
        if silence >= self._longest:
            self.state = SessionState.LOST
            return [], Lost(f"nothing heard for {silence:.1f} s")
        # A listener ignores HELLOs that are too many.
        if self.state is SessionState.HELLO_SENT and now - self._spoke >= self._hello_every:
            self._spoke = now
            return [self._hello_frame()], None
        if self.state is SessionState.READY:
            # Both: a PING that is under way is not followed by another one at the next tick.
            if min(silence, now - self._asked) >= self._patience:
                return [self.ping(now)], None
            if now - self._spoke >= self.heartbeat * SIGN_OF_LIFE:
                self._spoke = now
                return [self._pong(0)], None
        return [], None

    def deadline(self) -> float:
        """Return when `tick` has something to do, if nothing is heard until then; infinity when never."""
        if self.state in (SessionState.LOST, SessionState.REFUSED):
            return float("inf")
        lost = self._heard + self._longest
        if self.state is SessionState.HELLO_SENT:
            return min(lost, self._spoke + self._hello_every)
        if self.state is SessionState.READY:
            asks = max(self._heard, self._asked) + self._patience
            return min(lost, asks, self._spoke + self.heartbeat * SIGN_OF_LIFE)
        return lost

    @property
    def _patience(self) -> float:
        """Seconds of silence after which this side asks."""
        return self.heartbeat if self._hello is not None else self.heartbeat * LISTENER_PATIENCE

    @property
    def _longest(self) -> float:
        """Seconds of silence after which the peer is lost."""
        return self.heartbeat * (self._welcomed_within if self.state is SessionState.HELLO_SENT else LOST_AFTER)

    @property
    def _hello_every(self) -> float:
        """Seconds between HELLOs: three in all, as a listener takes few messages of an unauthenticated peer."""
        return self.heartbeat * self._welcomed_within / LOST_AFTER

    def ping(self, now: float) -> Frame:
        """Make a PING; its PONG also updates `latency`."""
        self._asked = self._spoke = now
        self._ping_count += 1
        # A peer that answers no PING must not make this grow.
        if len(self._pings) > LOST_AFTER * 2:
            self._pings.clear()
        self._pings[self._ping_count] = now
        return Frame(PING, offset=self._ping_count)

    def _pong(self, number: int) -> Frame:
        return Frame(PONG, offset=number, ack=int(self._pace * 1000))

    def _keep_to(self, pace: float) -> None:
        self.heartbeat = max(self._own, pace)

    def _hello_frame(self) -> Frame:
        return Frame(HELLO, payload=pack_body({**(self._hello or {}), "protocol": VERSION}))


def _text(body: dict[str, Any], key: str, default: str) -> str:
    """The beginning of a text that a peer tells; `default` if there is none, or something else in its place."""
    value = body.get(key)
    return value[:_LONGEST_TEXT] if isinstance(value, str) else default
