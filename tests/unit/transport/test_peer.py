"""`Peer`: calls, events and streams between two peers in one process, over paths that come and go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gevent
import pytest

from prouter.errors import AgentUnavailable, NotFound, ProtocolError, PRouterError, TooLarge
from prouter.fabric.bounds import MAX_CONTROL
from prouter.fabric.calls import Request, Result
from prouter.fabric.frames import RESET, Frame, decode, encode
from prouter.fabric.retries import MARKS
from prouter.fabric.session import Session
from prouter.fabric.stream import Stream
from prouter.transport.peer import Peer
from tests.support.loopback import Loopback, wait_for


class Party:
    """A delegate that notes what it is told."""

    def __init__(self, *, accepts_streams: bool = False, carry_out: Callable[[Request], Any] = lambda _: {}) -> None:
        self.peer = Peer(self, accepts_streams=accepts_streams)
        self.carry_out = carry_out
        self.refuses = False
        self.told: list[Any] = []
        self.streams: list[Stream] = []

    def on_greeted(self, peer: Peer, body: dict[str, Any]) -> None:
        if self.refuses:
            peer.refuse("bad_token", "no")
        else:
            peer.welcome({"uid": "listener"})

    def on_ready(self, peer: Peer, body: dict[str, Any]) -> None:
        self.told.append(("ready", body))

    def on_refused(self, peer: Peer, code: str, text: str) -> None:
        self.told.append(("refused", code))

    def on_lost(self, peer: Peer, reason: str) -> None:
        self.told.append(("lost", reason))

    def on_event(self, peer: Peer, name: str, body: dict[str, Any]) -> None:
        self.told.append((name, body))

    def on_request(self, peer: Peer, request: Request) -> dict[str, Any]:
        value: dict[str, Any] = self.carry_out(request)
        return value

    def on_stream(self, peer: Peer, route: bytes, stream: Stream, target: dict[str, Any]) -> None:
        self.streams.append(stream)


class Line:
    """A dialler and a listener; messages cross in a later event loop iteration, unless the path is lost by then."""

    def __init__(self, carry_out: Callable[[Request], Any] = lambda _: {}) -> None:
        self.dialler = Party()
        self.listener = Party(accepts_streams=True, carry_out=carry_out)
        self.routed: list[Frame] = []
        self.flying = 0
        self.breaks: bytes | None = None
        """A message with these bytes breaks the path instead of arriving."""

    def join(self) -> None:
        now = time.monotonic()
        self.listener.peer.attach(self._to(self.dialler), Session(now, 3600))
        self.dialler.peer.attach(self._to(self.listener), Session(now, 3600, {"uid": "dialler"}))

    def ready(self) -> Line:
        self.join()
        wait_for(lambda: self.dialler.peer.ready and self.listener.peer.ready)
        return self

    def lose(self) -> None:
        for party in (self.dialler, self.listener):
            party.peer.lose("cut")

    def _to(self, party: Party) -> Callable[[Sequence[bytes]], bool]:
        def carry(parts: Sequence[bytes]) -> bool:
            session = party.peer.session
            message = [bytes(part) for part in parts]
            if message[0]:
                self.routed += decode(message[1:])
            self.flying += 1

            def deliver() -> None:
                self.flying -= 1
                if party.peer.session is not session:
                    return
                if self.breaks is not None and self.breaks in b"".join(message):
                    self.lose()
                else:
                    party.peer.receive(message)

            gevent.get_hub().loop.run_callback(deliver)
            return True

        return carry


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    with gevent.Timeout(20):
        yield


def test_a_call_returns_the_value_or_raises_the_error_of_its_reply() -> None:
    def carry_out(request: Request) -> dict[str, Any]:
        if request.op == "fail":
            raise NotFound("no such job", job="j1")
        if request.op == "break":
            raise KeyError("secret")
        return {"got": request.args}

    peer = Line(carry_out).ready().dialler.peer
    assert peer.call("echo", {"a": 1}) == {"got": {"a": 1}}
    with pytest.raises(NotFound, match="no such job"):
        peer.call("fail", {})
    with pytest.raises(PRouterError, match="break failed: KeyError") as caught:
        peer.call("break", {})
    assert "secret" not in caught.value.detail
    with pytest.raises(TooLarge):
        peer.call("echo", {"much": "x" * MAX_CONTROL})
    assert peer.calls.pending == 0


def test_a_call_without_a_reply_in_time_fails_and_is_forgotten() -> None:
    line = Line(lambda request: gevent.sleep(10)).ready()
    with pytest.raises(AgentUnavailable, match="no answer to slow within"):
        line.dialler.peer.call("slow", {}, timeout=0.05)
    assert line.dialler.peer.calls.pending == 0


def test_a_call_is_carried_out_once_although_its_path_is_lost() -> None:
    carried_out: list[str] = []
    may_reply = gevent.event.Event()

    def carry_out(request: Request) -> dict[str, Any]:
        carried_out.append(request.call_id)
        may_reply.wait()
        return {"n": len(carried_out)}

    line = Line(carry_out).ready()
    caller = gevent.spawn(line.dialler.peer.call, "count", {})
    wait_for(lambda: carried_out)
    line.lose()
    may_reply.set()
    wait_for(lambda: not line.listener.peer.calls.running)
    line.ready()
    assert caller.get() == {"n": 1}


def test_a_call_that_breaks_every_path_fails_and_no_other_does() -> None:
    line = Line().ready()
    line.breaks = b"bad-op"
    results: list[Result] = []
    line.dialler.peer.ask("bad-op", {}, results.append)

    def answered_or_lost() -> bool:
        line.dialler.peer.tick(time.monotonic())
        return bool(results) or not line.dialler.peer.ready

    for _ in range(MARKS):
        assert not results, "paths break for other reasons, too"
        wait_for(answered_or_lost)
        if not results:
            line.join()
            wait_for(lambda: line.dialler.peer.ready or not line.dialler.peer.session)
    (result,) = results
    assert isinstance(result.error, ProtocolError)
    assert result.error.code == "call_breaks_link"
    line.ready()
    assert line.dialler.peer.call("good", {}) == {}


def test_events_need_a_path_and_a_size_that_peers_accept(caplog: pytest.LogCaptureFixture) -> None:
    line = Line()
    line.dialler.peer.notify("lost", {})
    line.ready()
    line.dialler.peer.notify("large", {"much": "x" * MAX_CONTROL})
    line.dialler.peer.notify("news", {"n": 1})
    wait_for(lambda: line.listener.told)
    assert line.listener.told == [("news", {"n": 1})]
    assert "event=event_not_sent name=large" in caplog.text


def test_a_refused_dialler_is_detached() -> None:
    line = Line()
    line.listener.refuses = True
    line.join()
    wait_for(lambda: line.dialler.told)
    assert line.dialler.told == [("refused", "bad_token")]
    assert line.dialler.peer.session is None
    assert not line.listener.peer.ready


def test_a_goodbye_is_told_and_detaches() -> None:
    line = Line().ready()
    line.dialler.peer.goodbye("shutdown")
    assert not line.dialler.peer.ready
    wait_for(lambda: line.listener.told)
    assert line.listener.told == [("lost", "shutdown")]


def test_a_malformed_message_costs_nothing_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    line = Line().ready()
    for _ in range(3):
        line.dialler.peer.receive([b"", b"garbage"])
        line.dialler.peer.receive([b"", *encode([Frame(99)])])
    assert line.dialler.peer.ready
    assert caplog.text.count("event=malformed_frame") == 1
    assert line.dialler.peer.call("echo", {}) == {}


class Failing:
    """A stream handler that fails at the first byte."""

    takes_views = False

    def __init__(self, stream: Stream) -> None:
        self.reset: tuple[str, str] | None = None
        stream.handler = self

    def on_data(self, data: bytes) -> None:
        raise ValueError("of this test")

    def on_finish(self) -> None: ...

    def on_writable(self) -> None: ...

    def on_reset(self, code: str, text: str) -> None:
        self.reset = (code, text)

    def on_closed(self) -> None: ...


def test_a_handler_that_fails_costs_its_own_stream_only(caplog: pytest.LogCaptureFixture) -> None:
    failing: list[Failing] = []
    loopback = Loopback(lambda stream, target: failing.append(Failing(stream)))
    bad = loopback.open({})
    told = Failing(bad)
    bad.write(b"x")
    wait_for(lambda: told.reset)
    assert told.reset == ("internal", "the stream's handler failed")
    assert "event=stream_failed" in caplog.text
    assert loopback.worker.ready
    wait_for(lambda: loopback.open_streams == 0)


def test_a_stream_that_nobody_reads_is_reset() -> None:
    loopback = Loopback(lambda stream, target: None)
    stream = loopback.open({})
    told = Failing(stream)
    stream.write(b"x")
    wait_for(lambda: told.reset)
    assert told.reset == ("not_wanted", "nobody reads this stream")


def test_streams_of_a_peer_that_was_given_up_are_not_opened_again() -> None:
    line = Line().ready()
    dialler, listener = line.dialler.peer, line.listener.peer
    for peer in (dialler, listener):
        peer.route_up(b"route")
    wait_for(lambda: len(line.routed) == 2 and not line.flying)
    stream = dialler.mux(b"route").open({})
    told = Failing(stream)
    wait_for(lambda: line.listener.streams)
    assert not stream.confirmed
    listener.keep_routes([], "worker_gone", "it did not come back")
    line.routed.clear()
    listener.route_up(b"route")
    dialler.route_up(b"route")
    wait_for(lambda: told.reset)
    assert told.reset is not None
    assert told.reset[0] == "worker_gone"
    assert len(line.listener.streams) == 1
    assert any(frame.type == RESET for frame in line.routed)


def test_streams_wait_while_their_route_is_away() -> None:
    line = Line().ready()
    dialler, listener = line.dialler.peer, line.listener.peer
    for peer in (dialler, listener):
        peer.route_up(b"route")
    dialler.route_down(b"route")
    dialler.route_down(b"unknown")
    dialler.mux(b"route").open({})
    gevent.idle()
    assert line.listener.streams == []
    dialler.route_up(b"route")
    wait_for(lambda: line.listener.streams)
