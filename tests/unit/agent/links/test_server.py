"""The agent's listener for routers: what is no proper HELLO costs little."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from prouter.agent.links.router_gate import RouterGate
from prouter.agent.links.router_link import RouterLink
from prouter.agent.links.server import Listener
from prouter.fabric.frames import HELLO, REFUSE, VERSION, Frame, decode, encode, pack_body, unpack_body
from prouter.transport.dealer import DealerSocket
from tests.support.fabric_peers import until

DEEP = b"\x91" * 1000 + b"\xc0"
"""A thousand lists, one within the other."""


def nobody() -> RouterLink:
    raise AssertionError("none of these routers is let in")


@pytest.mark.parametrize("field", ["protocol", "uid", "kind", "token"])
def test_a_hello_nested_deeply_is_refused(field: str, caplog: pytest.LogCaptureFixture) -> None:
    hello = {"protocol": VERSION, "kind": "router", "uid": "r", "token": "bad"}
    del hello[field]
    body = bytes([0x80 + len(hello) + 1]) + pack_body(hello)[1:] + pack_body({field: 0})[1:-1] + DEEP
    answers: list[Frame] = []
    with ExitStack() as stack:
        listener = Listener(nobody, RouterGate(closed=True), None, 2.0, "b" * 32, "127.0.0.1", 0)
        stack.callback(listener.close)
        router = DealerSocket(
            listener.endpoint, lambda parts: answers.extend(decode(parts[1:])), lambda reason: None, b"r"
        )
        stack.callback(router.close)
        router.send([b"", *encode([Frame(HELLO, payload=body)])])
        until(lambda: answers, what="it is refused")
    assert answers[0].type == REFUSE
    assert unpack_body(answers[0].payload)["code"] in ("bad_version", "bad_token", "bad_hello")
    assert not [record for record in caplog.records if record.exc_info]
