"""Connections and agents that send the broker what they should not."""

from __future__ import annotations

import contextlib
import os
from itertools import product

import gevent
import pytest
import zmq

from prouter.fabric.frames import HELLO, PING, VERSION, Frame, encode, pack_body
from prouter.transport.dealer import DealerSocket
from tests.support.broker_stage import BY_UID, Stage, stat
from tests.support.fabric_peers import until

NONSENSE: list[list[bytes]] = [
    [b""],
    [b"", b""],
    [b"", b"x"],
    [b"", b"\x01" * 33],
    [b"", b"\0" * 32, b"extra"],
    [b"route", b"payload"],
    [b"", *encode([Frame(PING)])],
    [b"", *encode([Frame(HELLO, payload=b"\xc1")])],
    [b"", os.urandom(500_000)],
    [b"", *encode([Frame(HELLO, payload=pack_body({"kind": "agent", "protocol": 1}))] * 1000)],
]


def test_a_connection_that_never_introduces_itself_is_ended_and_linked_agents_stay(stage: Stage) -> None:
    broker = stage.broker()
    worker, agent = stage.worker(broker), stage.agent(broker)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    silent = context.socket(zmq.DEALER)
    silent.setsockopt(zmq.RECONNECT_IVL, -1)
    silent.setsockopt(zmq.LINGER, 0)
    silent.connect(broker.endpoint)
    try:
        until(lambda: stat(worker, "strangers") == 1, what="it is noticed")
        until(lambda: stat(worker, "total.strangers_cut") == 1, 20, what="it is ended")
        assert stat(worker, "strangers") == 0
        assert stat(worker, "links.up") == 1
        assert agent.peer.ready
    finally:
        silent.close()
        context.term()


def test_a_stranger_that_says_anything_but_hello_is_cut_off(stage: Stage) -> None:
    broker = stage.broker()
    worker, agent = stage.worker(broker), stage.agent(broker)
    for parts in NONSENSE:
        losses: list[str] = []
        stranger = DealerSocket(broker.endpoint, lambda parts: None, losses.append, b"odd")
        stranger.send(parts)
        until(lambda losses=losses: losses, what=f"{parts!r:.40} is cut off")  # type: ignore[misc]
        stranger.close()
    assert agent.peer.ready
    assert worker.create(BY_UID)
    assert stat(worker, "strangers") == 0
    assert broker.log.read_text().count("event=malformed_message") == 1


DEEP = b"\x91" * 1000 + b"\xc0"
"""A thousand lists, one within the other: Python can neither print nor copy them."""


def test_hellos_nested_deeply_cost_no_more_than_others(stage: Stage) -> None:
    broker = stage.broker(server__accept_tokens=["good"])
    worker, agent = stage.worker(broker), stage.agent(broker, token="good")
    for kind, field in product(
        ("agent", "obituary"),
        ("protocol", "kind", "uid", "incarnation", "token", "platform", "properties", "capacity"),
    ):
        hello = {"protocol": VERSION, "kind": kind, "uid": "x", "name": "x", "incarnation": "0" * 32, "token": "good"}
        hello.pop(field, None)
        body = bytes([0x80 + len(hello) + 1]) + pack_body(hello)[1:] + pack_body({field: 0})[1:-1] + DEEP
        losses: list[str] = []
        stranger = DealerSocket(broker.endpoint, lambda parts: None, losses.append, b"odd")
        stranger.send([b"", *encode([Frame(HELLO, payload=body)])])
        stranger.send([b"", b""])
        until(lambda losses=losses: losses or stat(worker, "links.up") == 2, what=f"{kind} {field}")  # type: ignore[misc]
        stranger.close()
        until(lambda: stat(worker, "links.up") == 1)
    assert worker.create(BY_UID)
    assert agent.peer.ready
    assert stat(worker, "total.failures") == 0
    assert "Traceback" not in broker.log.read_text()


def test_malformed_messages_of_an_agent_are_counted_and_harmless(stage: Stage) -> None:
    broker = stage.broker()
    worker, agent = stage.worker(broker), stage.agent(broker)
    socket = agent.dialler._socket  # type: ignore[union-attr]
    assert socket is not None
    for parts in (
        [b"", os.urandom(100)],
        [b"", *encode([Frame(99)])],
        [b"", *encode([Frame(16, payload=b"\xc1")])],
    ):
        for _ in range(50):
            socket.send(parts)
    until(lambda: stat(worker, "total.malformed") >= 100)
    assert agent.peer.ready
    assert worker.create(BY_UID)
    assert broker.log.read_text().count("event=malformed_message") == 1


@pytest.mark.parametrize(
    ("parts", "count"),
    [([b"", encode([Frame(PING)])[0] * 32_000 + b"x"], 20), ([b"", b"x"], 40_000), ([b"nowhere", b""], 200_000)],
    ids=["malformed and large", "malformed", "leads nowhere"],
)
def test_an_agent_that_floods_with_what_is_of_no_use_loses_its_link(
    stage: Stage, parts: list[bytes], count: int
) -> None:
    broker = stage.broker()
    worker, agent = stage.worker(broker), stage.agent(broker)
    socket = agent.dialler._socket  # type: ignore[union-attr]
    assert socket is not None
    socket.send(parts)
    until(lambda: stat(worker, "total.malformed") + stat(worker, "messages.dropped") == 1)
    assert not agent.losses
    for number in range(count):
        socket.send(parts)
        if number % 1000 == 0:
            gevent.sleep(0)
    until(lambda: worker.of("link.down"), 20)
    assert "sends too much" in worker.of("link.down")[0]["reason"]
    assert stat(worker, "total.floods") == 1
    assert worker.call("connections")


def test_a_stranger_that_floods_keeps_nobody_from_linking(stage: Stage) -> None:
    broker = stage.broker()
    worker = stage.worker(broker)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    flood = context.socket(zmq.DEALER)
    flood.setsockopt(zmq.LINGER, 0)
    flood.setsockopt(zmq.RECONNECT_IVL, 1)
    flood.connect(broker.endpoint)
    stopped = gevent.event.Event()

    def send() -> None:
        while not stopped.wait(0):
            for _ in range(100):
                with contextlib.suppress(zmq.Again):
                    flood.send_multipart([b"", *encode([Frame(PING)])], zmq.NOBLOCK)

    sender = gevent.spawn(send)
    try:
        stage.agent(broker)
        until(lambda: stat(worker, "links.up") == 1)
    finally:
        stopped.set()
        sender.join(5)
        flood.close()
        context.term()
