"""Files and archives over HTTP with a real router and a real agent."""

from __future__ import annotations

import io
import os
import random
import socket
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes, urlsplit

import pytest
import requests
from urllib3.exceptions import ProtocolError

from tests.support.job_files import Sandbox
from tests.support.processes import start_agent, start_router, wait_until


def test_a_large_file_comes_back_whole_however_it_is_framed(sandbox: Sandbox) -> None:
    data = random.Random(1).randbytes(30_000_000)
    assert sandbox.file("a/b/one", "POST", data=data).content == b""
    pieces = (data[start : start + 1_000_003] for start in range(0, len(data), 1_000_003))
    assert sandbox.file("two", "PUT", data=pieces).status_code == 200
    for name in ("a/b/one", "two"):
        answer = sandbox.file(name)
        assert answer.headers["Content-Length"] == str(len(data))
        assert answer.content == data
    assert sandbox.file("a/b/one", headers={"Range": "bytes=12345678-23456789"}).content == data[12345678:23456790]
    parts = sandbox.file("two", headers={"Range": "bytes=0-9,20000000-20999999,-5"})
    assert parts.status_code == 206
    assert all(piece in parts.content for piece in (data[:10], data[20000000:21000000], data[-5:]))
    etag = sandbox.file("two", "HEAD").headers["ETag"]
    assert sandbox.file("two", headers={"If-None-Match": etag}).status_code == 304
    assert sandbox.file("two", headers={"If-Match": '"x"'}).status_code == 412


NAMES = [
    b"a b+c%&?#",
    "жаба.txt".encode(),
    b"new\nline",
    b"\xff\xfe",
    b".hidden",
    b"x" * 255,
    b"-rf",
    b"CON",
    b"\x7f\x01",
]


def test_every_name_comes_back_the_same(sandbox: Sandbox) -> None:
    for number, name in enumerate(NAMES):
        head = f"POST {sandbox.path}/file/{quote_from_bytes(name)} HTTP/1.1\r\nContent-Length: 1"
        assert sandbox.raw(head, b"%d" % number) == (200, b"")
    on_disk = sorted(one for one in os.listdir(os.fsencode(sandbox.root)) if not one.startswith(b".pagent"))
    assert on_disk == sorted(NAMES)
    entries = {entry["href"]: entry for entry in sandbox.file("").json()["entries"]}
    for number, name in enumerate(NAMES):
        entry = entries[quote_from_bytes(name, safe="")]
        assert os.fsencode(entry["name"]) == name
        target = f"{sandbox.path}/file/{entry['href']}"
        assert sandbox.raw(f"GET {target} HTTP/1.1") == (200, b"%d" % number)
        assert sandbox.raw(f"DELETE {target} HTTP/1.1") == (204, b"")


TRAVERSALS = [
    "../x",
    "..%2fx",
    "%2e%2e/x",
    "a/../../x",
    "%2e%2e%2f%2e%2e%2fetc/passwd",
    "/etc/passwd",
    "%2Fetc/passwd",
    "a%00b",
    "%",
    "%zz",
    "..",
    "link/x",
    "link",
]


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("path", TRAVERSALS)
def test_nothing_outside_is_touched(sandbox: Sandbox, tmp_path: Path, method: str, path: str) -> None:
    (tmp_path / "x").write_text("outside")
    (sandbox.root / "link").symlink_to(tmp_path)
    head = f"{method} {sandbox.path}/file/{path} HTTP/1.1" + ("\r\nContent-Length: 1" if method == "POST" else "")
    status, content = sandbox.raw(head, b"!" if method == "POST" else b"")
    on_the_link_itself = path == "link" and method != "GET"
    assert status in ((200, 204) if on_the_link_itself else (400, 403))
    assert b"outside" not in content
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == {"x": "outside"}


@pytest.mark.parametrize("framing", ["Content-Length: 1000000", "Transfer-Encoding: chunked"])
def test_an_upload_that_is_cut_leaves_the_old_file(sandbox: Sandbox, framing: str) -> None:
    sandbox.file("f", "POST", data=b"old")
    url = urlsplit(sandbox.router.url)
    with socket.create_connection((url.hostname or "", url.port or 0)) as client:
        client.sendall(f"POST {sandbox.path}/file/f HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n".encode())
        client.sendall(b"5000\r\n" + bytes(20000))
    wait_until(lambda: sandbox.file("f").content == b"old")
    assert [name for name in sandbox.names() if not name.startswith(".pagent")] == ["f"]
    assert [one.name for one in sandbox.root.iterdir() if not one.name.startswith(".pagent")] == ["f"]


def test_of_uploads_at_the_same_time_one_wins_whole(sandbox: Sandbox) -> None:
    bodies = [bytes([number]) * 3_000_000 for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda body: sandbox.file("f", "POST", data=body), bodies))
    assert {answer.status_code for answer in answers} == {200}
    assert sandbox.file("f").content in bodies


def test_modes_removal_directories_and_deletion(sandbox: Sandbox) -> None:
    sandbox.file("run?executable=1", "POST", data=b"#!/bin/sh\n")
    sandbox.file("secret?mode=600", "POST", data=b"x")
    assert (sandbox.root / "run").stat().st_mode & 0o777 == 0o755
    assert (sandbox.root / "secret").stat().st_mode & 0o777 == 0o600
    assert sandbox.file("d/e?directory=1", "PUT").status_code == 201
    assert sandbox.file("d/e?directory=1", "POST").status_code == 200
    assert sandbox.file("d", "DELETE").status_code == 409
    assert sandbox.file("d?recursive=1", "DELETE").status_code == 204
    assert sandbox.file("secret?remove=1").content == b"x"
    wait_until(lambda: sandbox.file("secret").status_code == 404)
    assert sandbox.file("none").json()["detail"] == "file 'none' is not found"
    assert sandbox.file("run/x").status_code == 404
    assert sandbox.file("run/x", "POST", data=b"").status_code == 409
    assert sandbox.file("", "POST", data=b"x").status_code in (400, 409)


def test_a_file_that_was_cut_off_is_not_removed(sandbox: Sandbox) -> None:
    sandbox.file("f", "POST", data=bytes(30_000_000))
    with sandbox.file("f?remove=1", stream=True) as answer:
        answer.raw.read(1000)
    assert sandbox.file("f", "HEAD").headers["Content-Length"] == "30000000"


def test_archives_both_ways(sandbox: Sandbox) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:xz") as archive:
        for name, data in (("a/one.txt", b"1" * 100_000), ("a/two.csv", b"2"), ("b/three.txt", b"")):
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(data), 0o640, 1_500_000_000
            archive.addfile(member, io.BytesIO(data))
    assert requests.post(f"{sandbox.url}/archive", data=made.getvalue(), timeout=30).content == b""
    whole = requests.get(f"{sandbox.url}/archive?exclude=.pagent*", timeout=30)
    assert whole.headers["Content-Length"] == str(len(whole.content))
    with tarfile.open(fileobj=io.BytesIO(whole.content)) as archive:
        files = {member.name: member for member in archive if member.isfile()}
        assert {name.removeprefix("./") for name in files} == {"a/one.txt", "a/two.csv", "b/three.txt"}
        assert {(member.mode, member.mtime) for member in files.values()} == {(0o640, 1_500_000_000)}
    part = requests.get(f"{sandbox.url}/archive/a?include=*.csv&compress=1", timeout=30)
    with tarfile.open(fileobj=io.BytesIO(part.content), mode="r:gz") as archive:
        assert [member.name.removeprefix("./") for member in archive if member.isfile()] == ["two.csv"]
    assert requests.post(f"{sandbox.url}/archive", data=b"not an archive", timeout=30).status_code == 400
    outside = io.BytesIO()
    with tarfile.open(fileobj=outside, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../evil"), io.BytesIO())
    refused = requests.post(f"{sandbox.url}/archive", data=outside.getvalue(), timeout=30)
    assert refused.status_code == 403
    assert "evil" in refused.json()["detail"]


def test_a_download_from_an_agent_that_is_killed_is_visibly_broken(launch: Callable[..., Any]) -> None:
    router = launch(start_router, control__hold=0.5)
    agent = launch(start_agent, router)
    sandbox = Sandbox(router, agent)
    sandbox.file("f", "POST", data=bytes(50_000_000))
    with sandbox.file("f", stream=True) as answer:
        got = len(answer.raw.read(1000))
        agent.kill()
        with pytest.raises((ConnectionError, ProtocolError)):
            got += sum(map(len, iter(lambda: answer.raw.read(65536), b"")))
    assert got < 50_000_000
    assert sandbox.file("f").status_code in (404, 503)
