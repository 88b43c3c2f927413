"""The listener for nodes, attacked by whoever reaches it."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.ssl import SSLContext

from prouter.keeper.wire import Decoder, encode
from prouter.runners.slurm.certificate import Certificate
from prouter.runners.slurm.listener import Listener

SECRET = "0" * 64


class Place:
    """A listener, and what it serves."""

    def __init__(self, directory: Path) -> None:
        self.certificate = Certificate(directory)
        self.served: list[dict[str, Any]] = []
        self.listener = Listener(self.certificate.context(), {"known": SECRET}.get, self._serve)
        self.port = self.listener.open("127.0.0.1", 0)

    def connect(self) -> Any:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def talk(self, data: bytes) -> bytes:
        """Send something over TLS; return the answer until its end, or its first message."""
        context = SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(cadata=self.certificate.public)
        with context.wrap_socket(self.connect()) as connection:
            connection.sendall(data)
            try:
                return bytes(connection.recv(65536))
            except ConnectionResetError:
                return b""

    def _serve(self, connection: Any, hello: dict[str, Any], *_: Any) -> None:
        self.served.append(hello)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    try:
        with gevent.Timeout(60):
            yield place
    finally:
        place.listener.close()


def hello(job: str = "known", secret: str = SECRET) -> bytes:
    return encode({"job": job, "secret": secret, "kind": "control"})


def test_only_the_secret_of_a_job_is_welcome(place: Place) -> None:
    for wrong in (hello(secret="1" * 64), hello(job="other"), hello(secret="")):
        (answer,) = Decoder().feed(place.talk(wrong))
        assert "refused" in answer
    assert place.served == []
    (answer,) = Decoder().feed(place.talk(hello()))
    assert answer.pop("time") == pytest.approx(time.time(), abs=5)
    assert answer == {"welcome": True}


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 100,
        encode({"job": "known"}),
        encode({"secret": SECRET}),
        (200_000).to_bytes(4, "little") + b"[" * 200_000,
        encode({"job": "known", "secret": "\udc80"}),
    ],
)
def test_garbage_is_answered_with_the_end(place: Place, garbage: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    assert b"welcome" not in place.talk(garbage)
    assert place.served == []
    assert "Traceback" not in capfd.readouterr().err


def test_names_of_jobs_cannot_add_lines_to_the_log(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "prouter.runner"):
        place.talk(hello(job="x\nevent=forged"))
    assert "event=node_refused" in caplog.text
    assert "\nevent=forged" not in caplog.text


def test_connections_that_say_nothing_keep_no_node_out(place: Place) -> None:
    silent = [place.connect() for _ in range(300)]
    try:
        with gevent.Timeout(8):
            assert b"welcome" in place.talk(hello())
    finally:
        for one in silent:
            one.close()
