"""The death notice reaches a router over each transport, by the command that the agent leaves with its keeper."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from prouter.agent.links.death_notice import notice_for
from prouter.fabric.frames import HELLO, VERSION, decode, unpack_body
from prouter.keeper.death_notice import Delivery, Notice
from prouter.key_pairs import KeyPair
from prouter.keys.files import make_pair
from prouter.keys.known_routers import KnownRouter
from tests.support.ports import free_port

Bound = Callable[..., zmq.Socket[bytes]]


@pytest.fixture
def bound() -> Iterator[Bound]:
    """``bound(endpoint, pair)``: a ROUTER of libzmq, with CURVE if there is a pair."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def bind(endpoint: str, pair: KeyPair | None = None) -> zmq.Socket[bytes]:
        router = context.socket(zmq.ROUTER)
        if pair is not None:
            router.setsockopt(zmq.CURVE_SERVER, 1)
            router.setsockopt_string(zmq.CURVE_SECRETKEY, pair.secret)
        router.bind(endpoint)
        return router

    yield bind
    context.destroy(0)


def tell(*routers: KnownRouter, pair: KeyPair | None = None) -> list[str]:
    """Run the command that an agent leaves; the lines that the keeper logs."""
    left = notice_for(routers, pair, uid="agent-1", incarnation="a" * 32)
    logged: list[str] = []
    Delivery(Notice(left.argv, left.environment, left.input), logged.append).finish()
    return logged


def notice(router: zmq.Socket[bytes]) -> dict[str, Any]:
    """The notice that a router got."""
    assert router.poll(10_000)
    _, empty, *parts = router.recv_multipart()
    assert not empty
    (frame,) = decode(parts)
    assert frame.type == HELLO
    return unpack_body(frame.payload)


EXPECTED = {
    "kind": "obituary",
    "uid": "agent-1",
    "incarnation": "a" * 32,
    "protocol": VERSION,
    "token": "secret",
}


def test_it_is_told_over_tcp(bound: Bound) -> None:
    port = free_port()
    router = bound(f"tcp://127.0.0.1:{port}")
    assert tell(KnownRouter(f"localhost:{port}", token="secret")) == []
    assert notice(router) == EXPECTED


def test_it_is_told_over_a_unix_socket(bound: Bound, work_dir: Path) -> None:
    address = f"ipc://{work_dir}/agents.sock"
    router = bound(address)
    assert tell(KnownRouter(address, token="secret")) == []
    assert notice(router) == EXPECTED


def test_it_is_told_encrypted_and_with_whichever_key_the_router_has(bound: Bound) -> None:
    port, pair = free_port(), make_pair()
    router = bound(f"tcp://127.0.0.1:{port}", pair)
    keys = (make_pair().public, pair.public)
    assert tell(KnownRouter(f"127.0.0.1:{port}", keys, "secret"), pair=make_pair()) == []
    assert notice(router) == EXPECTED


def test_a_router_that_is_away_keeps_it_from_no_other(bound: Bound) -> None:
    port, nobody = free_port(), free_port()
    router = bound(f"tcp://127.0.0.1:{port}")
    (line,) = tell(KnownRouter(f"127.0.0.1:{nobody}"), KnownRouter(f"127.0.0.1:{port}", token="secret"))
    assert f"event=death_notice_not_delivered router=127.0.0.1:{nobody}" in line
    assert notice(router) == EXPECTED


def test_secrets_are_in_no_argument_and_no_variable() -> None:
    pair = make_pair()
    left = notice_for([KnownRouter("host:1", (pair.public,), "a-secret")], pair, uid="a", incarnation="b")
    shown = [*left.argv, *left.environment, *left.environment.values(), repr(left)]
    assert not [text for text in shown if "a-secret" in text or pair.secret in text]


def test_it_needs_neither_the_working_directory_nor_the_variables_of_the_agent(bound: Bound) -> None:
    port = free_port()
    router = bound(f"tcp://127.0.0.1:{port}")
    left = notice_for([KnownRouter(f"127.0.0.1:{port}", token="secret")], None, uid="agent-1", incarnation="a" * 32)
    subprocess.run(left.argv, input=left.input, env=left.environment, cwd="/", text=True, check=True, timeout=30)
    assert notice(router) == EXPECTED
    assert "PYTHONPATH" in left.environment
    assert os.path.isabs(left.argv[0])


def test_a_command_that_cannot_be_run_is_logged() -> None:
    logged: list[str] = []
    Delivery(Notice(["/nowhere/python"], {}, ""), logged.append).finish()
    assert logged == ["event=death_notice_not_sent error='No such file or directory'"]


def test_without_a_router_nothing_is_run() -> None:
    logged: list[str] = []
    Delivery(Notice([], {}, ""), logged.append).finish()
    assert logged == []
