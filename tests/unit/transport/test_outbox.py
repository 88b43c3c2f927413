"""The outbox: all frames of an event loop iteration leave together, control frames first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prouter.fabric.frames import ACK, DATA, OPEN, PING, Frame, decode
from prouter.fabric.mux import Mux
from prouter.transport.outbox import Outbox


class Loop:
    """An event loop that runs when the test says so."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []
        self.delayed: list[Callable[[], None]] = []
        self.now: Callable[[], float] = lambda: 0.0
        self.soon: Callable[[Callable[[], None]], Any] = self.due.append
        self.later: Callable[[float, Callable[[], None]], Any] = lambda _seconds, callback: self.delayed.append(
            callback
        )
        self.spawn: Callable[..., Any] = lambda function, *arguments: function(*arguments)

    def run(self, callbacks: list[Callable[[], None]]) -> None:
        taken = callbacks[:]
        callbacks.clear()
        for callback in taken:
            callback()


class Sent:
    """An outbox with a path that keeps its messages."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.flushes = 0
        self.messages: list[tuple[bytes, list[int]]] = []
        self.outbox = Outbox(self.loop, self._before_flush)
        self.outbox.attach(self._send)

    def _before_flush(self) -> None:
        self.flushes += 1

    def _send(self, parts: Sequence[bytes]) -> bool:
        self.messages.append((parts[0], [frame.type for frame in decode(list(parts[1:]))]))
        return True

    def mux(self, route: bytes) -> Mux:
        mux = Mux(self.outbox.add, on_late_output=self.outbox.add_late)
        mux.tag = route
        mux.path_up()
        return mux


def test_frames_of_an_iteration_share_a_message_for_each_destination() -> None:
    sent = Sent()
    one, two = sent.mux(b"one"), sent.mux(b"two")
    stream = one.open({}, 100)
    stream.write(b"a")
    stream.write(b"b")
    two.open({}, 100)
    sent.outbox.say(Frame(PING))
    assert not sent.messages
    sent.loop.run(sent.loop.due)
    (neighbour, _), (first, frames), (second, _) = sent.messages
    assert (neighbour, first, second) == (b"", b"one", b"two"), "a heartbeat waits for no bytes"
    assert frames[1:] == [OPEN, DATA, DATA]
    assert not sent.loop.due


def test_flush_sends_at_once_and_the_iteration_has_nothing_left() -> None:
    sent = Sent()
    sent.outbox.say(Frame(PING))
    sent.outbox.flush()
    sent.loop.run(sent.loop.due)
    assert sent.messages == [(b"", [PING])]
    assert sent.flushes == 2


def test_a_late_frame_leaves_with_the_next_ones_or_after_a_while() -> None:
    sent = Sent()
    mux = sent.mux(b"one")
    sent.loop.run(sent.loop.due)
    sent.messages.clear()
    mux._output.send_late(Frame(ACK, sid=1))
    assert not sent.loop.due
    sent.loop.run(sent.loop.delayed)
    assert sent.messages == [(b"one", [ACK])]
    mux._output.send_late(Frame(ACK, sid=1))
    mux.open({}, 100)
    sent.loop.run(sent.loop.due)
    sent.loop.run(sent.loop.delayed)
    assert sent.messages[1:] == [(b"one", [ACK, OPEN])]


def test_without_a_path_frames_for_the_neighbour_are_dropped() -> None:
    sent = Sent()
    sent.outbox.say(Frame(PING))
    sent.outbox.detach()
    sent.outbox.say(Frame(PING))
    sent.loop.run(sent.loop.due)
    sent.outbox.attach(sent._send)
    sent.outbox.flush()
    assert sent.messages == []
