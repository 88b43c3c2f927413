"""What happens to streams, as `Mux` reports it."""

from __future__ import annotations

from typing import Any, NamedTuple

from prouter.fabric.stream import Stream

__all__ = ["Closed", "Finished", "Opened", "Received", "ResetReceived", "StreamEvent", "Writable"]


class Opened(NamedTuple):
    """The peer opened `stream` to `target`."""

    stream: Stream
    target: dict[str, Any]


class Received(NamedTuple):
    """New bytes; call `Stream.consume` once they are used."""

    stream: Stream
    data: bytes


class Finished(NamedTuple):
    """The peer writes nothing more; every byte was reported before."""

    stream: Stream


class Writable(NamedTuple):
    """A write that was cut short may go on."""

    stream: Stream


class ResetReceived(NamedTuple):
    """The stream ended early; `code` and `text` say why."""

    stream: Stream
    code: str
    text: str


class Closed(NamedTuple):
    """Both directions are done and acknowledged: the peer consumed every byte written here.

    Reported when a frame of the peer completes the stream. When the application's own `Stream.consume` completes it,
    no event follows; `Stream.closed` is true then.
    """

    stream: Stream


StreamEvent = Opened | Received | Finished | Writable | ResetReceived | Closed
