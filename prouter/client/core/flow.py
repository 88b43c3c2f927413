"""Flows: what to do, as generators that yield commands and receive their results.

A flow never waits or connects by itself. It yields one of the commands below, and a driver carries it out and sends the
result into the flow, or throws `Lost` if the connection failed. The same flow thus serves `Router` (one driver blocks)
and `AsyncRouter` (the other awaits), and tests need no network.

========  ====================================================  =====================
command   what the driver does                                  result
========  ====================================================  =====================
Send      sends a request, receives the whole answer            `Response`
Open      sends a request, receives the head of the answer      `Response`, no content
Read      receives the next bytes of the opened answer          bytes; b"" at its end
Sleep     waits                                                 None
Now       reads a clock that never goes back                    seconds
Work      calls a function that may block (local files)         its result
Give      hands an item to the caller of an iterator            None
========  ====================================================  =====================

A flow has one opened answer at a time: Open closes the one before it, and the driver the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

__all__ = [
    "Body",
    "Command",
    "Flow",
    "Give",
    "Lost",
    "Now",
    "Open",
    "Read",
    "Request",
    "Response",
    "Send",
    "Sleep",
    "Work",
    "give",
    "now",
    "open_",
    "read",
    "send",
    "sleep",
    "work",
]

T = TypeVar("T")


class Lost(Exception):
    """The connection failed.

    Attributes:
        reason: why, for people.
        sent: whether the request may have reached the router.
        hopeless: whether a retry cannot help (a certificate that is not trusted).
    """

    def __init__(self, reason: str, *, sent: bool = True, hopeless: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent
        self.hopeless = hopeless


def _ignore(_count: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Body:
    """A request body that is made while it is sent.

    Attributes:
        chunks: returns its bytes anew for every attempt; may block, and raises OSError if a local file fails.
        size: bytes, None if that is not known.
        on_sent: called with the number of bytes of each chunk that was sent.
    """

    chunks: Callable[[], Iterator[bytes]]
    size: int | None
    on_sent: Callable[[int], None] = _ignore


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        path: percent-encoded path with its query, from the router's root.
        silence: seconds without a byte from the router after which it counts as lost; None for the client's default.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Body | None = None
    silence: float | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """An answer; the names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes = b""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request and receive the whole answer."""

    request: Request


@dataclass(frozen=True, slots=True)
class Open:
    """Send a request and receive the head of the answer."""

    request: Request


@dataclass(frozen=True, slots=True)
class Read:
    """Receive the next bytes of the opened answer."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Now:
    """Read the clock."""


@dataclass(frozen=True, slots=True)
class Work:
    """Call a function that may block."""

    call: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Give:
    """Hand an item to the caller."""

    item: Any


Command = Send | Open | Read | Sleep | Now | Work | Give
Flow = Generator[Command, Any, T]
"""A flow whose result is a T."""


def send(request: Request) -> Flow[Response]:
    """Send a request; return the answer. Raises `Lost`."""
    response = yield Send(request)
    assert isinstance(response, Response)
    return response


def open_(request: Request) -> Flow[Response]:
    """Send a request; return the head of the answer. Raises `Lost`."""
    response = yield Open(request)
    assert isinstance(response, Response)
    return response


def read() -> Flow[bytes]:
    """Return the next bytes of the opened answer, b"" at its end. Raises `Lost`."""
    data = yield Read()
    assert isinstance(data, bytes)
    return data


def sleep(seconds: float) -> Flow[None]:
    """Wait."""
    yield Sleep(seconds)


def now() -> Flow[float]:
    """Return the time, seconds on a clock that never goes back."""
    moment = yield Now()
    assert isinstance(moment, (int, float))
    return moment


def work(call: Callable[[], T]) -> Flow[T]:
    """Return what a function that may block returns."""
    result: T = yield Work(call)
    return result


def give(item: Any) -> Flow[None]:
    """Hand an item to the caller."""
    yield Give(item)
