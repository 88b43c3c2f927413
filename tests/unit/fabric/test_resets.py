"""Reset codes and texts from the other end, which become header fields, pages and log lines."""

from __future__ import annotations

import pytest
from gevent import socket

from prouter.fabric.frames import RESET, Frame, pack_body
from prouter.fabric.mux import Mux, ResetReceived
from prouter.fabric.stream import Stream
from tests.support.api_stand import PATH, StandInRouter, StandInServer
from tests.support.loopback import Loopback

SPLIT = "x\r\nSet-Cookie: evil=1\r\n\r\n<script>"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("job_reset", "job_reset"),
        ("x" * 64, "x" * 64),
        ("x" * 65, "reset"),
        ("x" * 1_000_000, "reset"),
        (SPLIT, "reset"),
        ("é", "reset"),
        ("", "reset"),
        (None, "reset"),
        (7, "reset"),
        ({"a": 1}, "reset"),
    ],
)
def test_a_reset_code_of_the_wrong_form_becomes_reset(code: object, told: str) -> None:
    mux = Mux(lambda _mux: None)
    mux.path_up()
    stream = mux.open({"kind": "test"})
    body = {"code": code, "text": "t" * 1_000_000}
    (event,) = mux.receive([Frame(RESET, sid=stream.sid, payload=pack_body(body))])
    assert isinstance(event, ResetReceived)
    assert event.code == stream.reset_code == told
    assert len(event.text) == 4096


@pytest.mark.parametrize("text", [None, 7, ["x"], {"a": 1}])
def test_a_reset_text_that_is_no_string_is_empty(text: object) -> None:
    mux = Mux(lambda _mux: None)
    mux.path_up()
    stream = mux.open({"kind": "test"})
    (event,) = mux.receive([Frame(RESET, sid=stream.sid, payload=pack_body({"code": "x", "text": text}))])
    assert isinstance(event, ResetReceived)
    assert event.text == ""


@pytest.mark.parametrize("target", ["file/a", "file/", "archive", "logs/stdout", "info/../file/a"])
def test_a_reset_with_line_breaks_does_not_split_the_response(target: str, caplog: pytest.LogCaptureFixture) -> None:
    def accept(stream: Stream, _target: object) -> None:
        stream.reset(SPLIT, SPLIT)

    router = StandInRouter()
    router.loopback = Loopback(accept)
    with StandInServer(router) as server:
        client = server.connect(f"GET {PATH}/{target} HTTP/1.1\nConnection: close")
        client.settimeout(5)
        answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 ")
    assert answer.split(b" ", 2)[1] in (b"503", b"404")
    assert b"\r\nSet-Cookie" not in answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert not [record for record in caplog.records if record.exc_info]


def read_all(client: socket.socket) -> bytes:
    got = b""
    while piece := client.recv(65536):
        got += piece
    return got
