"""Files over HTTP: ranges, names, broken transfers, full disks, large files, races."""

from __future__ import annotations

import contextlib
import email
import email.message
import email.policy
import hashlib
import os
import random
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes, urlsplit

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.job_files import Sandbox
from tests.support.peak_memory import PeakMemory, descendants
from tests.support.processes import Agent, Router, start_agent, wait_until

MIB = 1 << 20
LARGE = int(os.environ.get("PROUTER_TEST_LARGE_FILE", 512 * MIB))
"""Bytes of the large file; the whole measure is 2 GiB."""


def connect(sandbox: Sandbox) -> socket.socket:
    url = urlsplit(sandbox.router.url)
    return socket.create_connection((url.hostname or "", url.port or 0), timeout=30)


def cut(client: socket.socket) -> None:
    """End a connection by a reset, as a killed client's kernel may."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def own(sandbox: Sandbox) -> list[str]:
    """Return the sandbox's contents on disk without the agent's own files."""
    return sorted(one.name for one in sandbox.root.iterdir() if not one.name.startswith(".pagent"))


# -- ranges and preconditions -----------------------------------------------------------------------------------


def parts(answer: requests.Response) -> list[tuple[str, bytes]]:
    """Content-Range and bytes of each part of a multipart answer."""
    head = f"Content-Type: {answer.headers['Content-Type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + answer.content, policy=email.policy.HTTP)
    assert isinstance(message, email.message.EmailMessage)
    found = []
    for part in message.iter_parts():
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        found.append((str(part["Content-Range"]), content))
    return found


def test_every_kind_of_range_gives_exactly_its_bytes(sandbox: Sandbox) -> None:
    data = bytes(range(256)) * 4000
    size = len(data)
    etag = sandbox.file("f", "POST", data=data).headers["ETag"]
    whole = sandbox.file("f")
    assert (whole.content, whole.headers["ETag"], whole.headers["Accept-Ranges"]) == (data, etag, "bytes")
    for text, start, stop in (
        ("0-0", 0, 1),
        ("100-", 100, size),
        ("-1", size - 1, size),
        (f"-{size * 2}", 0, size),
        (f"5-{size * 2}", 5, size),
        (f"{size - 1}-", size - 1, size),
    ):
        answer = sandbox.file("f", headers={"Range": f"bytes={text}"})
        assert (answer.status_code, answer.content) == (206, data[start:stop]), text
        assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
        assert answer.headers["Content-Length"] == str(stop - start)
    many = sandbox.file("f", headers={"Range": "bytes=0-1, 500000-500255,-3"})
    assert many.status_code == 206
    assert many.headers["Content-Length"] == str(len(many.content))
    wanted = [(0, 2), (500000, 500256), (size - 3, size)]
    assert parts(many) == [(f"bytes {a}-{b - 1}/{size}", data[a:b]) for a, b in wanted]
    for text in (f"{size}-", "-0"):
        beyond = sandbox.file("f", headers={"Range": f"bytes={text}"})
        assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{size}")
    for text in ("bytes=9-1", "bytes=x", "lines=1-2"):
        assert sandbox.file("f", headers={"Range": text}).status_code == 200, text


def test_preconditions_follow_the_file(sandbox: Sandbox) -> None:
    old = sandbox.file("f", "POST", data=b"old content").headers["ETag"]
    dated = sandbox.file("f", "HEAD").headers
    assert (dated["Content-Length"], dated["ETag"]) == ("11", old)
    assert sandbox.file("f", "HEAD").content == b""
    head = sandbox.file("f", "HEAD", headers={"Range": "bytes=0-1"})
    assert (head.status_code, head.headers["Content-Length"]) == (200, "11")
    assert sandbox.file("f", headers={"If-None-Match": f'"other", {old}'}).status_code == 304
    assert sandbox.file("f", headers={"If-None-Match": "*"}).status_code == 304
    since = {"If-Modified-Since": dated["Last-Modified"]}
    assert sandbox.file("f", headers=since).status_code == 304
    assert sandbox.file("f", headers={**since, "If-None-Match": '"other"'}).status_code == 200
    assert sandbox.file("f", headers={"Range": "bytes=0-2", "If-Range": old}).content == b"old"
    new = sandbox.file("f", "POST", data=b"new content!").headers["ETag"]
    assert new != old
    stale = sandbox.file("f", headers={"Range": "bytes=0-2", "If-Range": old})
    assert (stale.status_code, stale.content) == (200, b"new content!")
    assert sandbox.file("f", headers={"If-Match": old}).status_code == 412
    assert sandbox.file("f", headers={"If-None-Match": old}).content == b"new content!"
    assert sandbox.file("f", headers={"Range": "bytes=0-2", "If-None-Match": new}).status_code == 304
    empty = sandbox.file("empty", "POST", data=b"")
    assert empty.status_code == 200
    assert sandbox.file("empty").headers["Content-Length"] == "0"
    assert sandbox.file("empty", headers={"Range": "bytes=0-"}).status_code == 416


def test_a_file_that_is_replaced_all_the_time_is_never_mixed(sandbox: Sandbox) -> None:
    versions = [bytes([number]) * (200_000 + number) for number in range(8)]
    sandbox.file("f", "POST", data=versions[0])
    over = threading.Event()

    def replace() -> None:
        number = 0
        while not over.is_set():
            number = (number + 1) % len(versions)
            assert sandbox.file("f", "POST", data=versions[number]).status_code == 200

    with ThreadPoolExecutor(1) as pool:
        replacing = pool.submit(replace)
        try:
            for number in range(60):
                ranged = number % 2 == 1
                answer = sandbox.file("f", headers={"Range": "bytes=1000-150999"} if ranged else {})
                if answer.status_code == 409:
                    continue
                content = answer.content
                assert content in [one[1000:151000] if ranged else one for one in versions]
        finally:
            over.set()
        replacing.result(30)
    assert own(sandbox) == ["f"]


# -- names ------------------------------------------------------------------------------------------------------

names = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..") and name[:8] != b".pagent."
)


@given(name=names, data=st.binary(max_size=50))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_and_content_come_back_the_same(sandbox: Sandbox, name: bytes, data: bytes) -> None:
    target = f"{sandbox.path}/file/{quote_from_bytes(name, safe='')}"
    assert sandbox.raw(f"PUT {target} HTTP/1.1\r\nContent-Length: {len(data)}", data) == (200, b"")
    place = os.path.join(os.fsencode(sandbox.root), name)
    with open(place, "rb") as file:
        assert file.read() == data
    entries = [one for one in sandbox.file("").json()["entries"] if not one["name"].startswith(".pagent.")]
    assert [os.fsencode(one["name"]) for one in entries] == [name]
    assert sandbox.raw(f"GET {sandbox.path}/file/{entries[0]['href']} HTTP/1.1") == (200, data)
    assert sandbox.raw(f"DELETE {target} HTTP/1.1") == (204, b"")
    assert not os.path.lexists(place)


def test_a_path_is_percent_decoded_once_and_nothing_else(sandbox: Sandbox) -> None:
    for target, name in (
        ("a+b", "a+b"),
        ("a%2Bb2", "a+b2"),
        ("a%3Fb%23c", "a?b#c"),
        ("a%252Fb", "a%2Fb"),
        ("d%2Fe", "d/e"),
        ("x;y=1,@:&$!*'()", "x;y=1,@:&$!*'()"),
        (".hidden", ".hidden"),
        ("sp%20ace%20", "sp ace "),
        ("%e2%82%ac", "€"),
    ):
        head = f"POST {sandbox.path}/file/{target}?mode=600 HTTP/1.1\r\nContent-Length: 2"
        assert sandbox.raw(head, b"ok") == (200, b""), target
        assert (sandbox.root / name).read_bytes() == b"ok"
        assert sandbox.raw(f"GET {sandbox.path}/file/{target}?remove=0 HTTP/1.1") == (200, b"ok")
    too_long = sandbox.file("x" * 256, "POST", data=b"")
    assert too_long.status_code == 400


# -- broken transfers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_uploads_cut_at_any_point_leave_the_old_file_or_none(sandbox: Sandbox, framing: str, old: bytes | None) -> None:
    if old is not None:
        sandbox.file("d/f", "POST", data=old)
    dice = random.Random(7)
    body = dice.randbytes(3 * MIB)
    head = f"POST {sandbox.path}/file/d/f HTTP/1.1\r\nHost: localhost\r\n"
    if framing == "length":
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    else:
        chunk = b"%x\r\n%s\r\n" % (len(body), body)
        request = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk + b"0\r\n\r\n"
    cuts = [len(head) + 40, len(request) - 1, len(request) - 6, *(dice.randrange(200, len(request)) for _ in range(5))]
    for number, size in enumerate(cuts):
        client = connect(sandbox)
        client.sendall(request[:size])
        if number % 2:
            cut(client)
        else:
            client.shutdown(socket.SHUT_WR)
            client.settimeout(30)
            with contextlib.suppress(ConnectionResetError):  # the router may close before it has read everything
                while client.recv(65536):
                    pass
            client.close()
    found = sandbox.file("d/f")
    if old is None:
        assert found.status_code == 404
    else:
        assert found.content == old
    on_disk = sandbox.root / "d"
    wait_until(lambda: not on_disk.exists() or [one.name for one in on_disk.iterdir()] == ["f"] * (old is not None))


def test_a_chunked_upload_may_come_byte_by_byte(sandbox: Sandbox) -> None:
    """Every split of a chunked body is understood, even if the last chunk arrives alone."""
    request = f"POST {sandbox.path}/file/f HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    for body in (b"3\r\nabc\r\n0\r\n\r\n", b"0\r\n\r\n", b"1;x=y\r\na\r\n2\r\nbc\r\n0\r\nTrailer: 1\r\n\r\n"):
        for piece in (1, 2, 5):
            with connect(sandbox) as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                client.sendall(request)
                for start in range(0, len(body), piece):
                    client.sendall(body[start : start + piece])
                    wait_until(lambda: unread(client) == 0)
                assert client.recv(12) == b"HTTP/1.1 200"
            assert sandbox.file("f").content == (b"" if body[:1] == b"0" else b"abc")


def unread(client: socket.socket) -> int:
    """Bytes sent on a connection over IPv4 loopback that the server has not read yet."""
    port = client.getsockname()[1]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[2].endswith(f":{port:04X}"):
            return int(fields[4].partition(":")[2], 16)
    return 0


def test_a_malformed_chunk_leaves_the_old_file(sandbox: Sandbox) -> None:
    sandbox.file("f", "POST", data=b"old")
    for chunks in (b"zz\r\nabc\r\n0\r\n\r\n", b"3\r\nabcdef\r\n0\r\n\r\n", b"-1\r\n"):
        head = f"POST {sandbox.path}/file/f HTTP/1.1\r\nTransfer-Encoding: chunked"
        status, _body = sandbox.raw(head, chunks)
        assert 400 <= status < 500
        assert sandbox.file("f").content == b"old"
    assert own(sandbox) == ["f"]


def test_a_file_stays_until_its_last_byte_was_taken(sandbox: Sandbox) -> None:
    data = random.Random(3).randbytes(24 * MIB)
    sandbox.file("f", "POST", data=data)
    place = sandbox.root / "f"
    with connect(sandbox) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        head = f"GET {sandbox.path}/file/f?remove=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        client.sendall(head.encode())
        answer = bytearray()
        while len(answer) < 12 * MIB:
            answer += client.recv(MIB)
        assert sandbox.file("f", "HEAD").headers["Content-Length"] == str(len(data))
        assert place.exists()
        while some := client.recv(MIB):
            answer += some
    assert bytes(answer).partition(b"\r\n\r\n")[2] == data
    wait_until(lambda: not place.exists())


def test_what_gives_no_file_removes_none(sandbox: Sandbox) -> None:
    etag = sandbox.file("f", "POST", data=b"x").headers["ETag"]
    assert sandbox.file("f?remove=1", "HEAD").status_code == 200
    assert sandbox.file("f?remove=1", headers={"If-None-Match": etag}).status_code == 304
    assert sandbox.file("f?remove=1", headers={"If-Match": '"x"'}).status_code == 412
    sandbox.file("d?directory=1", "POST")
    assert sandbox.file("d?remove=1").json()["entries"] == []
    for number in range(3):
        with connect(sandbox) as client:
            head = f"GET {sandbox.path}/file/big{number}?remove=1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
            sandbox.file(f"big{number}", "POST", data=bytes(16 * MIB))
            client.sendall(head.encode())
            assert client.recv(1000)
            cut(client)
    assert own(sandbox) == ["big0", "big1", "big2", "d", "f"]
    assert sandbox.file("f?remove=2").status_code == 400
    assert sandbox.file("f").content == b"x"


# -- disks ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(work_dir: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    place = work_dir / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "none", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let root mount")
    yield place
    subprocess.run(["umount", "-l", "-R", place], check=True)


def fill(place: Path) -> None:
    """Write until the disk is full."""
    with place.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(65536)):
            pass


def test_a_full_or_read_only_disk_is_told_and_the_agent_lives(
    small_disk: Path, router: Router, launch: Callable[..., Any]
) -> None:
    root = small_disk / "jobs"
    agent: Agent = launch(start_agent, router, jobs__root=str(root))
    sandbox = Sandbox(router, agent, root)
    sandbox.file("f", "POST", data=b"old")
    for body in (bytes(20 * MIB), iter([bytes(MIB)] * 20)):
        answer = sandbox.file("f", "POST", data=body)
        assert (answer.status_code, answer.headers["X-PRouter-Error"]) == (507, answer.json()["code"])
        assert sandbox.file("f").content == b"old"
    assert own(sandbox) == ["f"]
    fill(sandbox.root / "filler")
    assert sandbox.file("g", "POST", data=bytes(5000)).status_code == 507
    assert sandbox.file("filler", "DELETE").status_code == 204
    assert sandbox.file("f", "POST", data=b"new").status_code == 200
    subprocess.run(["mount", "--bind", sandbox.root, sandbox.root], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", sandbox.root], check=True)
    refusals = [
        sandbox.file("f", "POST", data=b"never"),
        sandbox.file("f", "DELETE"),
        sandbox.file("d?directory=1", "POST"),
        sandbox.file("big", "POST", data=bytes(3 * MIB)),
    ]
    assert [answer.status_code for answer in refusals] == [403] * 4
    assert all("read-only" in answer.json()["detail"].lower() for answer in refusals)
    assert sandbox.file("f").content == b"new"
    subprocess.run(["umount", sandbox.root], check=True)
    assert sandbox.file("f", "POST", data=b"newer").status_code == 200
    assert agent.popen.poll() is None


def test_a_sandbox_deleted_under_its_job_is_a_clear_error(sandbox: Sandbox, agent: Agent) -> None:
    sandbox.file("f", "POST", data=b"x")
    sandbox.router.start(sandbox.path, ["sleep", "60"], port_expected_count=0)
    shutil.rmtree(sandbox.root)
    answers = [
        sandbox.file("f"),
        sandbox.file("g", "POST", data=b"x"),
        sandbox.file("g", "POST", data=bytes(3 * MIB)),
        sandbox.file(""),
        sandbox.archive(),
    ]
    assert [answer.status_code for answer in answers] == [404] * 5
    assert all(answer.json()["detail"] for answer in answers)
    assert sandbox.router.post(sandbox.path + "/stop", {"grace": 1}).status_code == 200
    assert agent.popen.poll() is None
    other = Sandbox(sandbox.router, agent)
    assert other.file("f", "POST", data=b"x").status_code == 200
    sandbox.router.post(other.path + "/remove")


# -- size -------------------------------------------------------------------------------------------------------


def test_a_large_file_costs_no_memory(sandbox: Sandbox, router: Router, agent: Agent) -> None:
    block = random.Random(11).randbytes(MIB)
    sent = hashlib.sha256()

    def body() -> Iterator[bytes]:
        for number in range(LARGE // MIB):
            piece = number.to_bytes(8, "big") + block[8:]
            sent.update(piece)
            yield piece

    pids = descendants(router.pid) + descendants(agent.pid)
    assert len(pids) >= 5
    sandbox.file("warm", "POST", data=bytes(MIB))
    assert len(sandbox.file("warm").content) == MIB
    memory = PeakMemory(pids)
    assert sandbox.file("large", "POST", data=body()).status_code == 200
    assert (sandbox.root / "large").stat().st_size == LARGE
    got = hashlib.sha256()
    with sandbox.file("large", stream=True) as answer:
        assert answer.headers["Content-Length"] == str(LARGE)
        for piece in iter(lambda: answer.raw.read(MIB), b""):
            got.update(piece)
    assert got.digest() == sent.digest()
    with sandbox.archive("?include=large", stream=True) as answer:
        assert int(answer.headers["Content-Length"]) > LARGE
        taken = sum(len(piece) for piece in iter(lambda: answer.raw.read(MIB), b""))
    assert taken == int(answer.headers["Content-Length"])
    growth = memory.growth()
    assert max(growth.values()) < 64 * MIB, growth


# -- confinement ------------------------------------------------------------------------------------------------


def test_a_directory_swapped_for_a_link_leads_nothing_outside(sandbox: Sandbox, tmp_path: Path) -> None:
    """A job's directory ``d`` is exchanged with a link to a place outside, over and over, under every request."""
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    for place in (outside / "f", outside / "deep" / "f"):
        place.write_bytes(b"SECRET")
    inside = sandbox.root / "d"
    (inside / "deep").mkdir(parents=True)
    for place in (inside / "f", inside / "deep" / "f"):
        place.write_bytes(b"inside")
    link = sandbox.root / "link"
    link.symlink_to(outside)
    code = (
        "import ctypes, os, sys\n"
        "libc = ctypes.CDLL(None)\n"
        "a, b = (os.fsencode(one) for one in sys.argv[1:])\n"
        "while True:\n"
        "    libc.renameat2(-100, a, -100, b, 2)\n"
    )
    sandbox.router.start(sandbox.path, ["python3", "-c", code, str(inside), str(link)], port_expected_count=0)
    seen: set[int] = set()

    def attack(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(120):
            name = dice.choice(("d/f", "d/deep/f", "link/f", "link/deep/f", "d/deep/../f"))
            action = dice.randrange(6)
            if action == 0:
                answer = sandbox.file(name)
            elif action == 1:
                answer = sandbox.file(f"{name}{seed}", "POST", data=b"PLANTED")
            elif action == 2:
                answer = sandbox.file(f"{name}{seed}", "DELETE")
            elif action == 3:
                answer = sandbox.file(f"{name}.dir{seed}?directory=1", "POST")
            elif action == 4:
                answer = requests.get(f"{sandbox.url}/archive/{dice.choice(('d', 'link', ''))}", timeout=30)
            else:
                answer = sandbox.file(dice.choice(("d", "link", "d/deep", "link/deep")))
            assert b"SECRET" not in answer.content
            assert answer.status_code < 500, answer.text
            seen.add(answer.status_code)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(attack, range(4)))
    assert {200, 403} <= seen
    left = {str(one.relative_to(outside)): one.is_dir() or one.read_bytes() for one in outside.rglob("*")}
    assert left == {"f": b"SECRET", "deep": True, "deep/f": b"SECRET"}
