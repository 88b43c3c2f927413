"""Clients get correct responses whatever an agent replies about files, archives and logs."""

from __future__ import annotations

import logging
from random import Random
from typing import Any

import gevent
import pytest

from prouter.errors import PRouterError
from prouter.fabric.stream import Stream
from prouter.transport.stream_io import StreamIO, StreamReset
from tests.fuzz.values import VALUES, any_value
from tests.support.api_stand import PATH, StandInRouter, StandInServer
from tests.support.loopback import Loopback

GOOD: dict[str, Any] = {
    "ok": True, "size": 5, "mtime_ns": 1_500_000_000_500_000_000, "etag": '"x"', "mode": 0o644, "offset": 0,
    "length": 5, "created": True, "files": 1, "directories": 0, "bytes": 5,
}  # fmt: skip
ASKED = [
    ("GET", "file/a"), ("HEAD", "file/a"), ("GET", "archive"), ("GET", "logs/stdout"), ("PUT", "file/b"),
    ("POST", "file/d?directory=1"), ("DELETE", "file/b"), ("POST", "archive"),
]  # fmt: skip
ERROR_KEYS = ("type", "code", "detail", "job", "state", "retry_after")
KNOWN = {200, 201, 204, 400, 404, 409, 412, 413, 416, 429, 500, 501, 502, 503, 504, 507}


class OddAgent:
    """An agent that answers each stream with a prepared preface, before and after some bytes."""

    def __init__(self) -> None:
        self.preface: Any = GOOD

    def accept(self, stream: Stream, _target: dict[str, Any]) -> None:
        gevent.spawn(self._answer, StreamIO(stream), self.preface)

    def _answer(self, io: StreamIO, preface: Any) -> None:
        try:
            io.write_preface(preface)
            io.write_all(b"hello")
            io.write_preface(preface)
            io.close()
            while io.read():
                pass
        except (StreamReset, PRouterError):
            pass  # The worker has no use for more.


def prefaces() -> list[Any]:
    random = Random(1)
    found: list[Any] = [{**GOOD, key: value} for key in GOOD for value in VALUES]
    found += [{"error": value} for value in VALUES]
    found += [{"error": {"type": "NotFound", "detail": "x", key: value}} for key in ERROR_KEYS for value in VALUES]
    found += [{**GOOD, random.choice(list(GOOD)): any_value(random)} for _ in range(100)]
    return random.sample(found, 500)


@pytest.mark.parametrize(("method", "target"), ASKED)
def test_a_preface_may_hold_anything(method: str, target: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    agent, router = OddAgent(), StandInRouter()
    router.loopback = Loopback(agent.accept)
    with StandInServer(router) as server:
        for agent.preface in prefaces():
            client = server.connect(f"{method} {PATH}/{target} HTTP/1.1\nConnection: close\nContent-Length: 0")
            client.settimeout(10)
            answer = b""
            try:
                while piece := client.recv(65536):
                    answer += piece
            except ConnectionResetError:
                pass
            client.close()
            head = answer.partition(b"\r\n\r\n")[0]
            assert not answer or int(head.split(b" ", 2)[1]) in KNOWN, (agent.preface, answer[:300])
            assert b"traceback" not in answer.lower()
            crashed = [record for record in caplog.records if record.exc_info or "crashed" in record.msg]
            assert not crashed, (agent.preface, crashed[0].getMessage(), crashed[0].exc_info)
