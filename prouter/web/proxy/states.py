"""States of a proxied exchange: two machines, one per direction, each an enum and a table of what may follow.

HTTP lets both directions run at once: a job may respond before it has the whole request, and a client may still send
while it reads. So neither machine waits for the other, and each has its own back-pressure. They meet in two places
only: a response that begins before the client has sent its whole request is the last one on the client's connection
(RFC 9112 section 9.6), and a request that is sent again goes through its states once more, over a fresh stream.

**The request** (`RequestState`, kept by `prouter.web.proxy.sender.RequestSender`)::

    HELD ──┬──► STREAMING ◄──┬──► BLOCKED ◄──► SENT
           │        │        │                  ▲
           ├────────│────────┘                  │
           └────────┴───────────────────────────┘

The stream's window decides between STREAMING or SENT, where it has room for what is at hand, and BLOCKED, where it has
not. SENT goes back to BLOCKED if the request is sent again and does not fit the fresh stream's window.

**The response** (`ResponseState`, kept by `prouter.web.proxy.lifecycle.ExchangeLifecycle`)::

    ROUTING ──┬──► RESENDABLE ──┬──► BODY ──► DONE
              │        │        │
              │        ▼        ├──► EXPLAINING
              └──► COMMITTED ───┤
                                └──► TUNNEL    (from COMMITTED only: an upgrade never goes over a reused stream)

    ROUTING, RESENDABLE, COMMITTED, EXPLAINING ──► SUBSTITUTED
    ROUTING, RESENDABLE, COMMITTED, EXPLAINING, BODY ──► ABORTED

RESENDABLE ends when the request is sent again, or when the client has seen an interim response: after either a second
copy of the request could be noticed. It exists for reused streams only. A job may close an idle connection while the
next request is on its way to it (RFC 9112 section 9.5), and such a request must not fail.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = [
    "ABORTED",
    "BLOCKED",
    "BODY",
    "COMMITTED",
    "DONE",
    "EXPLAINING",
    "HELD",
    "NEXT_REQUEST",
    "NEXT_RESPONSE",
    "RESENDABLE",
    "ROUTING",
    "SENT",
    "STREAMING",
    "SUBSTITUTED",
    "TUNNEL",
    "RequestState",
    "ResponseState",
    "refuse",
]


class RequestState(IntEnum):
    """How far the request is on its way to the job."""

    HELD = 0
    """Nothing is sent: the job is not known or not reachable yet. The body waits in the client's connection."""
    STREAMING = 1
    """The head is sent, and the body follows as the client sends it."""
    BLOCKED = 2
    """The stream's window is full: bytes wait for it, and the client is not read."""
    SENT = 3
    """The stream has the whole request."""


class ResponseState(IntEnum):
    """How far the response is on its way to the client. The order counts: from DONE on, the exchange is over."""

    ROUTING = 0
    """The job is looked up, or held until it can be reached."""
    RESENDABLE = 1
    """The request goes over a reused stream and may be sent once more over a fresh one."""
    COMMITTED = 2
    """The request is not sent again, whatever happens."""
    EXPLAINING = 3
    """The stream ended without a response; the router finds out why, to say so."""
    BODY = 4
    """The client has the response head, and the body follows."""
    DONE = 5
    """The client has the whole response."""
    TUNNEL = 6
    """The job switched protocols: a `prouter.web.proxy.tunnel.Tunnel` owns client and stream."""
    SUBSTITUTED = 7
    """The router responded itself: with an error, or with a redirect."""
    ABORTED = 8
    """The client disconnected, or its response was cut."""


# CPython 3.11 looks up a member through a descriptor written in Python, which costs 20 times a global.
HELD, STREAMING, BLOCKED, SENT = RequestState
ROUTING, RESENDABLE, COMMITTED, EXPLAINING, BODY, DONE, TUNNEL, SUBSTITUTED, ABORTED = ResponseState

NEXT_REQUEST: dict[RequestState, frozenset[RequestState]] = {
    HELD: frozenset({STREAMING, BLOCKED, SENT}),
    STREAMING: frozenset({BLOCKED, SENT}),
    BLOCKED: frozenset({STREAMING, SENT}),
    SENT: frozenset({BLOCKED}),
}
"""The states that may follow each state of a request."""

NEXT_RESPONSE: dict[ResponseState, frozenset[ResponseState]] = {
    ROUTING: frozenset({RESENDABLE, COMMITTED, SUBSTITUTED, ABORTED}),
    RESENDABLE: frozenset({COMMITTED, BODY, EXPLAINING, SUBSTITUTED, ABORTED}),
    COMMITTED: frozenset({BODY, TUNNEL, EXPLAINING, SUBSTITUTED, ABORTED}),
    EXPLAINING: frozenset({SUBSTITUTED, ABORTED}),
    BODY: frozenset({DONE, ABORTED}),
    DONE: frozenset(),
    TUNNEL: frozenset(),
    SUBSTITUTED: frozenset(),
    ABORTED: frozenset(),
}
"""The states that may follow each state of a response."""


def refuse(now: IntEnum, wanted: IntEnum) -> RuntimeError:
    """Return the error for a change that a table does not allow: a programming error."""
    return RuntimeError(f"{type(now).__name__}: {wanted.name} may not follow {now.name}")
