"""Responses by which a hostile job could reach other clients, set fields for others, or steer nginx.

The corpus is tests/data/http_attacks/responses.yaml. Each response is asked for directly and through nginx, and another
request follows on the same connection.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_http_attacks import HOST, WAYS, Entry, Stand, corpus, standing
from tests.support.raw_http import Raw

JOBS = Path(__file__).parents[1] / "jobs"
POISON = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
CORPUS = corpus("responses")
LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*([0-9]+)")


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with standing(guarded=False) as found:
        yield found


@pytest.fixture(scope="module")
def hostile(stand: Stand) -> str:
    """The path of a job that answers with the bytes that its query names."""
    return stand.router.serve(stand.agent, JOBS / "corner_server.py") + "/http"


def response(raw: Raw) -> tuple[bytes, bytes]:
    """Read one response: its head and its body."""
    head = raw.read_until(b"\r\n\r\n")
    if b"\r\ntransfer-encoding: chunked" in head.lower():
        body = b""
        while size := int(raw.read_until(b"\r\n"), 16):
            body += raw.read_exactly(size)
            raw.read_exactly(2)
        raw.read_exactly(2)
        return head, body
    length = LENGTH.search(head)
    status = head.split(b" ", 2)[1]
    return head, raw.read_exactly(int(length[1])) if length and status not in (b"204", b"304") else b""


@WAYS
@pytest.mark.parametrize("entry", CORPUS, ids=[entry["name"] for entry in CORPUS])
def test_a_job_reaches_nobody_else(stand: Stand, hostile: str, entry: Entry, way: str) -> None:
    assert entry.keys() <= {"name", "answer", "status", "body", "fields", "never"}
    answer = base64.urlsafe_b64encode(entry["answer"].replace("<POISON>", POISON).encode("latin-1")).decode()
    with Raw(stand.url(way), 20) as raw:
        raw.request("GET", f"{hostile}/raw?keep=1&b64={answer}", host=HOST)
        head, body = response(raw)
        assert head.split(b" ", 2)[1] == str(entry.get("status", 502)).encode(), head
        if "status" in entry:
            assert body == entry.get("body", "").encode()
        for field in entry.get("fields", []):
            assert f"\r\n{field}\r\n".encode() in head
        for part in (*entry.get("never", []), "poison"):
            assert part.encode() not in (head if part != "poison" else head + body).lower(), head
        if b"\r\nconnection: close" not in head.lower():
            raw.request("GET", f"{stand.job}/http/next", "Connection: close\r\n", host=HOST)
            assert response(raw)[1] == b"GET /next HTTP/1.1"
    with Raw(stand.url(way), 20) as raw:  # a connection to the job that was left in disorder would serve this one
        raw.request("GET", f"{hostile}/record/x", "Connection: close\r\n", host=HOST)
        assert response(raw)[1] == b"recorded"
