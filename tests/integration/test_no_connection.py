"""A failed connection between router and agent is reported at once, with the reason in words."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import gevent
import pytest
from gevent import socket
from gevent.server import StreamServer

from prouter.agent.links.router_link import RouterLink
from prouter.transport.dealer import DealerSocket
from prouter.transport.zmtp.handshakes import opening
from tests.support.broker_world import World
from tests.support.fabric_peers import until
from tests.support.ports import free_port

Answering = Callable[[bytes], str]


@pytest.fixture
def answering() -> Iterator[Answering]:
    """``answering(data)``: the address of a server that says this to everybody, closes if it is nothing."""
    with ExitStack() as stack:

        def serve(data: bytes) -> str:
            def handle(sock: socket.socket, _address: object) -> None:
                if data:
                    sock.sendall(data)
                    gevent.sleep(30)
                sock.close()

            server = StreamServer(("127.0.0.1", 0), handle)
            server.start()
            stack.callback(server.stop, 0)
            return f"127.0.0.1:{server.server_port}"

        yield serve


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and says nothing, as one for HTTP does."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def troubles(address: str) -> list[str]:
    """What is told of an attempt to connect."""
    told: list[str] = []
    dealer = DealerSocket(f"tcp://{address}", lambda parts: None, lambda reason: None, on_trouble=told.append)
    try:
        until(lambda: told, 5)
    finally:
        dealer.close()
    return told


def test_a_port_where_nobody_listens() -> None:
    address = f"127.0.0.1:{free_port()}"
    assert troubles(address)[0] == f"{address}: connection refused"


def test_a_name_that_nobody_has() -> None:
    assert "no-such-host.invalid:8889: the name cannot be looked up" in troubles("no-such-host.invalid:8889")[0]


@pytest.mark.parametrize(
    "data", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH\r\n", b"\x15\x03\x01\x00\x02\x02\x46"]
)
def test_a_port_of_another_protocol(answering: Answering, data: bytes) -> None:
    told = troubles(answering(data))[0]
    assert "this is no port for agents" in told
    assert repr(data[:24]) in told
    assert "server.port" in told
    assert "\n" not in told


def test_a_port_that_closes_at_once(answering: Answering) -> None:
    assert "closes the connection without a word" in troubles(answering(b""))[0]


def test_a_port_that_says_nothing(silent: str) -> None:
    assert "what listens there says nothing" in troubles(silent)[0]


def test_a_socket_of_zeromq_that_is_no_router(answering: Answering) -> None:
    assert "is no ROUTER" in troubles(answering(opening(b"PUB")))[0]


def test_an_agent_logs_each_reason_once_until_it_is_linked(caplog: pytest.LogCaptureFixture) -> None:
    class _Host:
        """As much of an agent as a link without a router needs."""

        def hello(self) -> dict[str, str]:
            return {"process": "p"}

        def link_failed(self, link: RouterLink, reason: str, *, refused: bool) -> None:
            failed.append(reason)

    failed: list[str] = []
    link = RouterLink(_Host(), "SERVER", "router:8889", "", 30.0)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING, "prouter.agent.links"):
        for _ in range(10):
            link.troubled("router:8889: connection refused")
            link.troubled("router:8889: no answer")
        link.on_lost(link.peer, "nothing heard for 6.0 s")
    assert [record.getMessage() for record in caplog.records] == [
        "event=link_failed router=router:8889 reason='router:8889: connection refused'",
        "event=link_failed router=router:8889 reason='router:8889: no answer'",
    ]
    assert failed == ["router:8889: no answer"]


def test_a_create_tells_why_the_agent_cannot_be_dialled() -> None:
    world = World(dial_timeout=3.0)
    worker = world.worker()
    agent = {"type": "address", "address": "host:7", "token": "secret"}
    call = worker.call("jobs.create", name="job", key="k", agent=agent)
    world.run(1)
    (dial,) = world.broker.dials._dials
    assert dial.path is not None
    world.broker.dials.troubled(dial.path, "connection refused")
    world.run(3)
    assert worker.results[call].detail == "no agent answers at host:7: connection refused"


def test_a_create_where_no_agent_is_connected_tells_what_to_do() -> None:
    world = World()
    worker = world.worker()

    def refused(agent: dict[str, object], key: str) -> str:
        return str(worker.results[worker.call("jobs.create", name="job", key=key, agent=agent)].detail)

    nobody = "no agent is connected: start one with 'prouter agent', which logs why if it cannot reach this router"
    assert refused({"type": "any"}, "1") == nobody
    assert refused({"type": "uid", "uid": "x"}, "2") == f"no connected agent with uid 'x'; {nobody}"
    for number in range(12):
        world.agent(f"gpu-{number:02d}", f"{number:032x}")
    named = ", ".join(f"gpu-{number:02d}" for number in range(10))
    assert (
        refused({"type": "uid", "uid": "x"}, "3")
        == f"no connected agent with uid 'x'; connected agents: {named} and 2 more"
    )
    assert "connected agents: gpu-00" in refused({"type": "any", "properties": {"zone": "a"}}, "4")
