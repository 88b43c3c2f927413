"""A worker's connections to servers that users name."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from prouter.errors import Forbidden
from prouter.targets import Targets
from prouter.web.outgoing import connect_to, look_up


class Resolver:
    """A resolver whose answer changes with each look-up, as whoever rebinds a name has it."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)

    def __call__(self, host: str, port: int, **_options: Any) -> list[tuple[Any, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.answers.pop(0)]


def test_a_name_is_looked_up_once_for_check_and_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver(["169.254.169.254", "127.0.0.1"], ["169.254.169.254"])
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        usable = Targets().usable("x.org", look_up("x.org", port, 5))
        with connect_to(usable, 5) as connection:
            assert connection.getpeername() == ("127.0.0.1", port)
    assert len(resolver.answers) == 1
    with pytest.raises(Forbidden):
        Targets().usable("x.org", look_up("x.org", port, 5))


def test_the_next_address_is_tried_and_the_last_failure_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        found = [(socket.AF_INET, ("127.0.0.2", port)), (socket.AF_INET, ("127.0.0.1", port))]
        connect_to(found, 5).close()
        with pytest.raises(ConnectionRefusedError):
            connect_to(found[:1], 5)
    with pytest.raises(OSError, match="Cannot assign"):
        connect_to([], 5)


def test_a_name_without_an_address_fails() -> None:
    for host in ("x" * 64 + ".invalid", "-.invalid", ""):
        with pytest.raises(OSError):
            connect_to(look_up(host, 9, 5), 5)
