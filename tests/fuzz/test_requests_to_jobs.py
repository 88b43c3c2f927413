"""Whatever fields a client sends, the job gets one correct request, or the client gets an error that says why."""

from __future__ import annotations

import re
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.fuzz.answers import any_fields
from tests.support.processes import Agent, Router, start_agent, start_router

COUNT = 150
MODES: list[dict[str, Any]] = [{}, {"path": "keep"}, {"host": "local"}]
SERVER = r"""
import os, socket, threading
server = socket.create_server(("127.0.0.1", int(os.environ["PORT"])), backlog=100)
def serve(client):
    data = b""
    while b"\r\n\r\n" not in data:
        piece = client.recv(65536)
        if not piece:
            break
        data += piece
    try:
        client.settimeout(0.005)
        while piece := client.recv(65536):
            data += piece
    except OSError:
        pass
    try:
        client.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data))
    except OSError:
        pass
    client.close()
while True:
    client, _ = server.accept()
    threading.Thread(target=serve, args=(client,), daemon=True).start()
"""
"""Source of a job server that responds with the bytes of the request."""
FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([\t \x21-\x7e\x80-\xff]*)")


@pytest.fixture(scope="module", params=[[], ["127.0.0.1"]], ids=["clients", "a trusted proxy"])
def pair(short_dir: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Router, Agent]]:
    with ExitStack() as stack:
        directory = short_dir / f"asks-{len(request.param)}"
        router = start_router(directory, control__response_timeout=2.0, control__trusted_proxies=request.param)
        stack.callback(router.stop)
        agent = start_agent(directory / "agent", router)
        stack.callback(agent.stop)
        yield router, agent


def ask(router: Router, data: bytes) -> bytes:
    host, _, port = router.url.removeprefix("http://").rpartition(":")
    got = b""
    with socket.create_connection((host, int(port)), 20) as sock:
        try:
            sock.sendall(data)
            while piece := sock.recv(65536):
                got += piece
        except ConnectionError:
            pass  # It was refused before all of it was read.
    return got


@pytest.mark.parametrize("seed", range(3))
def test_a_job_gets_one_request_or_none(pair: tuple[Router, Agent], seed: int) -> None:
    router, agent = pair
    random = Random(seed)
    path = router.create(agent.uid)
    router.start(path, [sys.executable, "-c", SERVER], expose={"port": "assign", **MODES[seed]})
    place = router.url.removeprefix("http://").encode()
    seen: Counter[int] = Counter()
    for number in range(COUNT):
        fields = any_fields(random)
        if any(re.match(rb"(?i)(content-length|transfer-encoding|upgrade|expect)[ \t]*:", line) for line in fields):
            continue  # The client would have to go on with a body.
        target = f"{path}/http/n{number}".encode()
        lines = [b"GET %s HTTP/1.1" % target, b"Host: " + place, *fields, b"Connection: close"]
        answer = ask(router, b"\r\n".join(lines) + b"\r\n\r\n")
        if not answer:
            seen[0] += 1
            continue
        head, _, body = answer.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        seen[status] += 1
        assert status in (200, 400, 403, 421, 431, 508), (fields, answer[:500])
        if status == 200:
            (length,) = re.findall(rb"(?i)\ncontent-length: (\d+)", head)
            check(body[: int(length)], target if seed == 1 else b"/n%d" % number, fields)
    assert seen[200] > COUNT / 3
    assert seen[0] < COUNT / 10
    router.post(f"{path}/remove")
    log = router.log.read_text(errors="replace")
    assert "Traceback" not in log
    assert "event=link_down" not in log


def check(got: bytes, target: bytes, sent: list[bytes]) -> None:
    """Check that the job received one request, and no value became a field of its own."""
    head, separator, rest = got.partition(b"\r\n\r\n")
    assert separator, got[:500]
    assert rest == b"", (rest[:200], sent)
    first, *lines = head.split(b"\r\n")
    assert first == b"GET %s HTTP/1.1" % target
    names: Counter[bytes] = Counter()
    for line in lines:
        field = FIELD.fullmatch(line)
        assert field is not None, (line[:200], sent)
        names[field[1].lower()] += 1
    assert names[b"host"] == 1
    assert not names[b"content-length"] + names[b"transfer-encoding"]
    for name in (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-prefix", b"forwarded"):
        assert names[name] <= 1, (name, sent)
