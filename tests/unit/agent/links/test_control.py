"""The agent's own HTTP API, which every program on its machine can reach, cannot harm its jobs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from random import Random

import gevent
import pytest
from gevent import socket

from prouter.agent.links import control
from prouter.agent.links.control import Control

REQUESTS = [
    b"GET /info HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET http://localhost/info HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /shutdown HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
]
JUNK = [b"\r", b"\n", b"\0", b" ", b":", b"\r\n", b"\xff", b"%ff", b"-", b"9" * 30, b"x" * 9000]


@pytest.fixture
def port() -> Iterator[int]:
    api = Control(info=lambda: {"a": 1}, connections=dict, jobs=dict, shutdown=lambda: None)
    url = api.open("127.0.0.1", 0)
    with gevent.Timeout(60):
        yield int(url.rpartition(":")[2])
    api.close()


def ask(port: int, data: bytes) -> bytes:
    """What comes back when nothing more is sent."""
    client = socket.create_connection(("127.0.0.1", port), 10)
    got = b""
    try:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        while piece := client.recv(65536):
            got += piece
    except (ConnectionError, OSError):
        pass  # It was refused before all of it was read.
    finally:
        client.close()
    return got


def test_what_is_no_http_is_refused_in_one_line(
    port: int, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    random = Random(1)
    for _ in range(400):
        data = random.choice(REQUESTS)
        for _ in range(random.choice([1, 1, 2, 5])):
            at = random.randrange(len(data))
            data = data[:at] + random.choice(JUNK) + data[at + random.randrange(2) :]
        ask(port, data)
    ask(port, b"GET /info HTTP/1.1\r\n" + b"X: y\r\n" * 1000 + b"\r\n")
    assert ask(port, b"GET /info HTTP/2\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert ask(port, REQUESTS[0]).endswith(b'{"a": 1}')
    written = capfd.readouterr()
    assert "Traceback" not in written.out + written.err
    told = [record for record in caplog.records if record.name == "prouter.agent.links.control"]
    assert told
    assert all(record.levelno == logging.INFO and len(record.getMessage()) < 300 for record in told)


def test_connections_that_are_held_are_few_and_end(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_LONGEST", 0.3)
    held = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(100)]
    for client in held:
        client.sendall(b"GET /info HTTP/1.1\r\nX: ")
    assert ask(port, REQUESTS[0]).endswith(b'{"a": 1}'), "it is the turn of others, too"
    for client in held:
        while client.recv(65536):
            pass
        client.close()


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /info?token=%s HTTP/9.9\r\n\r\n",
        b"%s\r\n\r\n",
        b"GET /%s x y z\r\n\r\n",
        b"GET /info HTTP/1.1\r\nAuthorization %s\r\n\r\n",
        b"POST /shutdown HTTP/1.1\r\nContent-Length: %s\r\n\r\n",
        b"POST /jobs HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n",
        b"GET /info?token=%s HTTP/1.1\r\nAuthorization: Bearer %s\r\n\r\n",
        b"G%s /info HTTP/1.1\r\n\r\n",
    ],
)
def test_no_request_gets_into_the_log(
    port: int, request_head: bytes, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ask(port, request_head.replace(b"%s", b"s3cret"))
    assert "s3cret" not in caplog.text + "".join(capfd.readouterr())
