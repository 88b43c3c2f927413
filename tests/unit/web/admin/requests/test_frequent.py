"""Responses without the app: they are those of the app, and everything that it would refuse is left to it."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import gevent
import pytest

from prouter.access.roles import Principal, Role
from prouter.config.directories import connections_version
from prouter.process.shared_version import VersionFile
from prouter.web.admin.app import Polled, create_app
from prouter.web.admin.requests.frequent import FrequentReads
from prouter.web.admin.resources.connections import Connections
from prouter.web.admin.resources.info import Info
from prouter.web.gunicorn.admin import AdminService
from prouter.web.proxy.addresses.forwarded import Forwarded, Origin
from prouter.web.proxy.connection import ClientConnection
from prouter.web.proxy.interfaces import Client
from tests.support.api_stand import PLATFORM, StandInRouter
from tests.support.fabric_peers import until

VIEWER = Principal("ada", Role.VIEWER)
TAG = b'If-None-Match: W/"abc-1"\r\n'
_OWN = re.compile(rb"(?<=Date: )[^\r]*|(?<=x-request-id: )[0-9a-f]{16}(?=\r)")
"""What differs between any two responses."""


class Stand:
    """A worker's API on one connection.

    Attributes:
        principal: who sends the requests.
        by_app: how many requests the app has got.
    """

    def __init__(self, directory: Path, listed: bytes, **settings: Any) -> None:
        self.router = StandInRouter()
        config = self.router.config
        state = config.state.model_copy(update={"run_dir": str(directory)})
        self.router.config = config.model_copy(update={"state": state})
        self.version = VersionFile(connections_version(self.router.config))
        self.router.answers["info"] = {"auth": {"uid": "r", "name": "n"}, "platform": PLATFORM}
        self.router.answers["connections"] = lambda args: {
            "connections": listed,
            "etag": "abc-1",
            "version": self.version.version,
        }
        for name, value in settings.items():
            setattr(self.router, name, value)
        router = cast(Any, self.router)
        polled = Polled(Info(router), Connections(router))
        self.frequent = FrequentReads(router, self.router.config, polled._asdict())
        self._app = create_app(router, self.router.config, self.router.gate, polled=polled)
        self.principal: Principal | None = VIEWER
        self.by_app = 0
        self.draining = False
        self._service = AdminService(self._count, self._at_once)
        self._without = AdminService(self._count)
        self._fast = True

    def _count(self, environ: dict[str, Any], start_response: Any) -> Any:
        self.by_app += 1
        return self._app(environ, start_response)

    def _at_once(self, client: Client, forwarded: Forwarded) -> bool:
        return self.frequent.send(client, forwarded)

    def _dispatch(self, client: ClientConnection, head: Any, _looped: bool) -> None:
        service = self._service if self._fast else self._without
        service.start(client, Forwarded(head, client.origin, self.principal))

    def ask(self, request: bytes, *, fast: bool = True) -> bytes:
        """Send raw requests on a new connection; return all that comes back until it rests."""
        self._fast = fast
        server = SimpleNamespace(
            loop=gevent.get_hub().loop,
            head_timeout=30.0,
            idle_timeout=30.0,
            body_timeout=30.0,
            upload_timeout=0.0,
            max_head=65536,
            draining=self.draining,
            mark=b"5f0e",
            dispatch=self._dispatch,
            forget=lambda _connection: None,
            client_key=lambda _forwarded: "",
        )
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        connection = ClientConnection(cast(Any, server), ours, Origin("127.0.0.1", 8888, False))
        received = bytearray()

        def rests() -> bool:
            while True:
                try:
                    data = theirs.recv(1 << 20)
                except BlockingIOError:
                    break
                received.extend(data)
                if not data:
                    break
            return received.count(b"HTTP/1.1 ") >= request.count(b" HTTP/1.") and connection.exchange is None

        try:
            theirs.sendall(request)
            until(rests)
            return bytes(received)
        finally:
            connection.close()
            theirs.close()

    def warm(self) -> None:
        """Have both responses at hand."""
        self.ask(get(b"/info") + get(b"/connections"), fast=False)
        self.by_app = 0


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with gevent.Timeout(20):
        stand = Stand(tmp_path, b'{"connections":[{"uid":"c1"}]}')
        stand.warm()
        yield stand
        stand.version.close()


def get(target: bytes, fields: bytes = b"", *, host: bytes = b"localhost:8888", method: bytes = b"GET") -> bytes:
    return b"%b %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (method, target, host, fields)


SENT = [
    pytest.param(get(b"/info"), id="info"),
    pytest.param(get(b"/connections"), id="connections"),
    pytest.param(get(b"/connections", TAG), id="known list"),
    pytest.param(get(b"/connections", b'If-None-Match: "x", W/"abc-1"\r\n'), id="several tags"),
    pytest.param(get(b"/connections", b"If-None-Match: *\r\n"), id="any tag"),
    pytest.param(get(b"/connections", b'If-None-Match: W/"abc-0"\r\n'), id="old list"),
    pytest.param(get(b"/connections", b"If-None-Match: nonsense\r\n"), id="no tag"),
    pytest.param(get(b"/info", TAG), id="a tag for what has none"),
    pytest.param(get(b"/info", b"X-Request-ID: mine.7\r\n"), id="own id"),
    pytest.param(get(b"/info", b"x_request_id: mine.7\r\n"), id="a name with an underscore"),
    pytest.param(get(b"/info", b"X-Request-ID: not usable\r\n"), id="unusable id"),
    pytest.param(get(b"/info", b"Connection: close\r\n"), id="close"),
    pytest.param(b"GET /info HTTP/1.0\r\nHost: localhost\r\n\r\n", id="HTTP/1.0"),
    pytest.param(b"GET /info HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n", id="HTTP/1.0, kept"),
    pytest.param(b"GET http://localhost:8888/info HTTP/1.1\r\nHost: localhost\r\n\r\n", id="absolute target"),
    pytest.param(get(b"/info", b"Origin: https://elsewhere.example\r\n"), id="another site, which cannot read it"),
]


@pytest.mark.parametrize("request_", SENT)
def test_what_is_sent_without_the_app_is_what_the_app_sends(stand: Stand, request_: bytes) -> None:
    found = stand.ask(request_)
    assert stand.by_app == 0
    assert _OWN.sub(b"", found) == _OWN.sub(b"", stand.ask(request_, fast=False))
    assert stand.by_app == 1


@pytest.mark.parametrize("request_", [get(b"/info"), get(b"/connections", TAG)])
def test_a_worker_that_drains_closes_the_connection(stand: Stand, request_: bytes) -> None:
    stand.draining = True
    found = stand.ask(request_)
    assert b"\r\nConnection: close\r\n" in found
    assert _OWN.sub(b"", found) == _OWN.sub(b"", stand.ask(request_, fast=False))


LEFT = [
    pytest.param(get(b"/info", host=b"evil.example"), b"421", id="unknown host"),
    pytest.param(get(b"/info", method=b"POST"), b"403", id="post"),
    pytest.param(get(b"/info", method=b"HEAD"), b"200", id="head"),
    pytest.param(get(b"/info", method=b"OPTIONS"), b"200", id="options"),
    pytest.param(get(b"/info?x=1"), b"200", id="query"),
    pytest.param(get(b"/info/"), b"200", id="slash"),
    pytest.param(get(b"/%69nfo"), b"404", id="escaped"),
    pytest.param(get(b"/connections/c1"), b"200", id="one of them"),
    pytest.param(get(b"/connections?limit=x"), b"400", id="wrong query"),
    pytest.param(get(b"/info", b"Content-Length: 2\r\n") + b"{}", b"200", id="body"),
    pytest.param(get(b"/connections", TAG + TAG), b"304", id="field twice"),
]


@pytest.mark.parametrize(("request_", "status"), LEFT)
def test_everything_else_is_left_to_the_app(stand: Stand, request_: bytes, status: bytes) -> None:
    found = stand.ask(request_)
    assert stand.by_app == 1
    assert found.startswith(b"HTTP/1.1 " + status)


def test_who_shows_no_valid_credentials_is_left_to_the_app(stand: Stand) -> None:
    stand.principal = None
    assert stand.ask(get(b"/info")).startswith(b"HTTP/1.1 401 ")
    assert stand.ask(get(b"/connections", TAG)).startswith(b"HTTP/1.1 401 ")
    assert stand.by_app == 2


def test_a_list_that_is_not_current_is_left_to_the_app(stand: Stand) -> None:
    stand.ask(get(b"/connections"))
    assert stand.by_app == 0
    stand.version.increment()
    stand.ask(get(b"/connections"))
    assert stand.by_app == 1
    stand.ask(get(b"/connections"))
    assert stand.by_app == 1
    stand.router.ready = False
    stand.ask(get(b"/connections"))
    assert stand.by_app == 2


def test_pipelined_requests_are_answered_in_order(stand: Stand) -> None:
    found = stand.ask(b"".join(get(b"/info", b"X-Request-ID: %d\r\n" % number) for number in range(20)))
    assert re.findall(rb"x-request-id: (\d+)\r", found) == [b"%d" % number for number in range(20)]
    assert stand.by_app == 19, "only the last one has nothing behind it"


def test_a_long_list_is_left_to_the_app_unless_the_client_has_it(tmp_path: Path) -> None:
    stand = Stand(tmp_path, b'{"connections":["%b"]}' % (b"x" * 100_000))
    stand.warm()
    assert len(stand.ask(get(b"/connections"))) > 100_000
    assert stand.by_app == 1
    assert stand.ask(get(b"/connections", TAG)).startswith(b"HTTP/1.1 304 ")
    assert stand.by_app == 1
    stand.version.close()


def test_requests_that_count_for_a_limit_are_left_to_the_app(tmp_path: Path) -> None:
    limits = SimpleNamespace(per_owner=5.0, refusal=lambda _owner: None, unauthenticated=lambda *_args, **_named: None)
    stand = Stand(tmp_path, b'{"connections":[]}', limits=limits)
    stand.warm()
    stand.ask(get(b"/info"))
    stand.ask(get(b"/connections"))
    assert stand.by_app == 2
    stand.version.close()


def test_the_resolver_which_may_block_is_not_asked_on_the_event_loop(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_the_loop: list[bool] = []

    def full_name() -> str:
        on_the_loop.append(gevent.getcurrent() is gevent.get_hub())
        return "this.example"

    monkeypatch.setattr("prouter.host_names._full_name", full_name)
    for host, status in ((b"this.example", b"200"), (b"other.example", b"421")):
        assert stand.ask(get(b"/info", host=host)).startswith(b"HTTP/1.1 " + status)
    assert on_the_loop == [False, False]
