"""Connections of the broker to agents that listen."""

from __future__ import annotations

import select
import socket
import time
from typing import Any

import pytest

from prouter.broker.base.timers import Timers
from prouter.broker.sockets.dialling import Dialling
from prouter.broker.sockets.poller import Poller
from prouter.broker.sockets.port import Port
from prouter.targets import Targets


class Loop:
    """As much of the broker's loop as dialling needs; notes what becomes of each attempt."""

    def __init__(self, targets: Targets) -> None:
        self.told: list[Any] = []
        self.timers, self.poller = Timers(), Poller()
        self.woken = False
        self.dialling = Dialling(
            self.timers,
            self._wake,
            self.poller,
            lambda port, connection, now: self.told.append(connection),
            lambda port, now: self.told.append("failed"),
            lambda port, text: None,
            lambda port, text, now: self.told.append(text),
            targets,
        )

    def _wake(self) -> None:
        self.woken = True

    def run(self) -> Any:
        deadline = time.monotonic() + 10
        while not self.told:
            assert time.monotonic() < deadline
            now = time.monotonic()
            if self.woken:
                self.dialling.turn(now)
            for handle in self.poller.poll(0.01):
                handle(now)
        return self.told[0]


def test_only_addresses_that_were_checked_are_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [["169.254.169.254", "127.0.0.1"], ["127.0.0.2", "169.254.169.254"]]

    def resolver(host: str, port: int, **_options: Any) -> list[tuple[Any, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers.pop(0)]

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        loop = Loop(Targets([f"127.0.0.1:{port}"]))
        loop.dialling.dial(Port([]), "x.org", port, None)
        connection = loop.run()
        assert select.select([listener], [], [], 10)[0]
        connection.close()
    assert len(answers) == 1, "one look-up"
    loop = Loop(Targets([f"127.0.0.1:{port}"]))
    loop.dialling.dial(Port([]), "x.org", port, None)
    assert "control.allow_targets" in loop.run()
