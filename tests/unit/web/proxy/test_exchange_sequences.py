"""Events of client, job and worker in any order: no change of state is refused, and nothing is left at the end."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from types import SimpleNamespace
from typing import Any, cast

import gevent
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prouter.fabric.stream import Stream
from prouter.web.proxy import lifecycle, sender
from prouter.web.proxy.addresses.forwarded import Forwarded
from prouter.web.proxy.addresses.roots import Asked
from prouter.web.proxy.connection import ClientConnection
from prouter.web.proxy.exchange import ProxyExchange
from prouter.web.proxy.messages.heads import RequestHead
from prouter.web.proxy.upstream import UpstreamPool
from tests.unit.web.proxy.test_exchange import Stage

REQUESTS = {
    "get": b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n",
    "old": b"GET /x HTTP/1.0\r\nHost: h\r\n\r\n",
    "post": b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\nabc",
    "expect": b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\nExpect: 100-continue\r\n\r\n",
    "chunked": b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    "large": b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 70000\r\n\r\n" + bytes(60_000),
    "large head": b"GET /x HTTP/1.1\r\nHost: h\r\nX: " + b"y" * 40_000 + b"\r\n\r\n",
    "upgrade": b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: talk\r\n\r\n",
    "body": b"def",
    "last chunk": b"0\r\n\r\n",
    "broken chunk": b"zz\r\n",
    "much": bytes(10_000),
}
RESPONSES = {
    "whole": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "head": b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-",
    "interim": b"HTTP/1.1 103 Early\r\n\r\n",
    "switch": b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: talk\r\n\r\n",
    "until close": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nx",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
    "garbage": b"zz\r\n\r\n",
}
WINDOW = 32768
"""Less than the large ones of the requests."""
RESETS = ("job_ended", "not_running", "agent_gone", "connect_timeout")
OTHERS = ("deliver", "deny", "finish", "shutdown", "disconnect", "route", "explain", "too late", "stop", "window")
EVENTS = st.lists(
    st.one_of(
        st.sampled_from([("client", key) for key in REQUESTS]),
        st.sampled_from([("job", key) for key in RESPONSES]),
        st.sampled_from([("reset", code) for code in RESETS]),
        st.sampled_from([(event, "") for event in (*OTHERS, "deliver", "deliver", "deliver", "route")]),
    ),
    max_size=24,
)


class Play(Stage):
    """A stage whose events happen when they are named. A job's route is known only after ``route``."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[ProxyExchange] = []
        self.failed: list[tuple[Any, str, bool]] = []
        client = SimpleNamespace(
            open_stream=lambda connection, target: self.worker.open(target, WINDOW), is_up=lambda connection: True
        )
        self.server.pool = UpstreamPool(cast(Any, client))
        self.server.explain = lambda exchange, detail, patience, reached: self.failed.append(
            (exchange, detail, reached)
        )

    def _dispatch(self, connection: ClientConnection, head: RequestHead, _looped: bool) -> None:
        forwarded = Forwarded(head, connection.origin)
        exchange = ProxyExchange(cast(Any, self.server), connection, forwarded, Asked("", "", head.target, True))
        connection.exchange = exchange
        self.server.exchanges.add(exchange)
        self.held.append(exchange)

    def happen(self, event: str, what: str) -> None:
        """Let one event happen, and everything that follows from it at once."""
        getattr(self, f"_{event.replace(' ', '_')}")(what)
        self._read()
        with contextlib.suppress(OSError):
            self.client.recv(1 << 20)

    def _read(self) -> None:
        """Have the worker read what the client sent, as its event loop would, and run what it put off."""
        connection = self.connection
        while connection.alive and not connection._paused and not connection._eof and self._readable():
            connection._on_readable()
        gevent.sleep(0)

    def _readable(self) -> bool:
        return bool(select.select([self.connection._fd], [], [], 0)[0])

    def _client(self, key: str) -> None:
        with contextlib.suppress(OSError):
            self.client.send(REQUESTS[key])

    def _open(self) -> list[Stream]:
        return [stream for stream in self.opened if not stream.closed]

    def _job(self, key: str) -> None:
        for stream in self._open()[-1:]:
            with contextlib.suppress(ValueError):
                stream.write(RESPONSES[key])

    def _reset(self, code: str) -> None:
        for stream in self._open()[-1:]:
            stream.reset(code, "so it was")

    def _finish(self, _what: str) -> None:
        for stream in self._open()[-1:]:
            stream.close()

    def _deliver(self, _what: str) -> None:
        self.to_agent()
        self.to_worker()

    def _deny(self, _what: str) -> None:
        """The job's side is told first: what it said crosses what the worker sent."""
        self.to_worker()
        self.to_agent()

    def _shutdown(self, _what: str) -> None:
        with contextlib.suppress(OSError):
            self.client.shutdown(socket.SHUT_WR)

    def _disconnect(self, _what: str) -> None:
        self.client.close()

    def _route(self, _what: str) -> None:
        for exchange in self.held:
            if exchange.waiting:
                exchange.forward(self.route)
        self.held.clear()

    def _explain(self, _what: str) -> None:
        for exchange, detail, reached in self.failed:
            exchange.fail_with_reason(detail, reached=reached)
        self.failed.clear()

    def _too_late(self, _what: str) -> None:
        for exchange in list(self.server.exchanges):
            exchange.check_timeout(time.monotonic() + 1e6, 10.0, 10.0)

    def _stop(self, _what: str) -> None:
        if self.connection.exchange is not None:
            self.connection.exchange.end("the worker stops")

    def _window(self, _what: str) -> None:
        """The job reads, or no longer."""
        self.hungry = not self.hungry
        if self.hungry:
            for stream in self._open():
                stream.consume(stream.unread)


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Changes of state that a table did not allow, wherever they were raised."""
    found: list[str] = []

    def refuse(now: Any, wanted: Any) -> RuntimeError:
        found.append(f"{now.name} → {wanted.name}")
        return RuntimeError(found[-1])

    monkeypatch.setattr(lifecycle, "refuse", refuse)
    monkeypatch.setattr(sender, "refuse", refuse)
    return found


@given(events=EVENTS)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_events_in_any_order_end_well(refused: list[str], events: list[tuple[str, str]]) -> None:
    play = Play()
    try:
        for event, what in events:
            play.happen(event, what)
        play.connection.disconnected()
        assert not play.server.exchanges
        play.happen("deliver", "")
        idle = play.server.pool.idle
        assert len([stream for stream in play.worker.streams.values() if not stream.closed]) <= idle
    finally:
        play.connection.close()
        play.client.close()
    assert not refused
