"""Archives over HTTP: trees come back the same; bombs, and members that would leave the sandbox, are refused."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import os
import random
import socket
import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import zstandard

from tests.support.job_files import Sandbox
from tests.support.peak_memory import PeakMemory, descendants
from tests.support.processes import Agent, Router, start_agent, wait_until
from tests.support.programs import needed

MIB = 1 << 20
NAMES = (
    b"plain",
    b"with space",
    "жаба".encode(),
    b".hidden",
    b"new\nline",
    b"\xff\xfe",
    b"x" * 255,
    b"a%2Fb?#+",
    b"-rf",
)
Tree = dict[bytes, tuple[Any, ...]]


def grow(root: Path, seed: int) -> None:
    """A random tree: nested and empty directories, files of all sizes and modes, times with nanoseconds, links."""
    dice = random.Random(seed)
    folders = [os.fsencode(root)]
    for number in range(60):
        folder = dice.choice(folders)
        name = dice.choice(NAMES) if dice.random() < 0.4 else b"n%d" % number
        path = os.path.join(folder, name)
        if os.path.lexists(path):
            continue
        kind = dice.random()
        if kind < 0.3 and len(path) < 2000:
            os.mkdir(path)
            folders.append(path)
        elif kind < 0.4:
            up = b"../" if folder != folders[0] and kind < 0.35 else b"./"
            os.symlink(up + b"n%d" % dice.randrange(60), path)
        else:
            with open(path, "wb") as file:
                file.write(dice.randbytes(dice.choice((0, 1, 511, 512, 513, 10_000, 300_000))))
            os.chmod(path, dice.choice((0o644, 0o755, 0o600, 0o400, 0o777, 0o000)))
        if not os.path.islink(path):
            times = dice.randrange(10**9, 2 * 10**9) * 10**9 + dice.randrange(10**9)
            os.utime(path, ns=(times, times))
    for folder in reversed(folders[1:]):
        os.chmod(folder, dice.choice((0o755, 0o700, 0o750)))
        times = dice.randrange(10**9, 2 * 10**9) * 10**9 + dice.randrange(10**9)
        os.utime(folder, ns=(times, times))


def tree(root: Path, grain: int) -> Tree:
    """Kind, mode, time to `grain` nanoseconds and checksum or target of everything below, but the agent's own files."""
    found: Tree = {}
    top = os.fsencode(root)
    for folder, folders, names in os.walk(top):
        for name in folders + names:
            if folder == top and name.startswith(b".pagent"):
                continue
            path = os.path.join(folder, name)
            info = os.lstat(path)
            if stat.S_ISLNK(info.st_mode):
                found[os.path.relpath(path, top)] = ("link", os.readlink(path))
                continue
            content = b""
            if stat.S_ISREG(info.st_mode):
                with open(path, "rb") as file:
                    content = hashlib.sha256(file.read()).digest()
            found[os.path.relpath(path, top)] = (info.st_mode, info.st_mtime_ns // grain, content)
    return found


@pytest.fixture
def other(router: Router, agent: Agent) -> Iterator[Sandbox]:
    """A second sandbox."""
    sandbox = Sandbox(router, agent)
    yield sandbox
    router.post(sandbox.path + "/remove")


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("form", ["tar", "tar.gz", "tar.zst", "zip"])
def test_a_random_tree_comes_back_the_same(sandbox: Sandbox, other: Sandbox, form: str, seed: int) -> None:
    grow(sandbox.root, seed)
    packed = sandbox.archive(f"?format={form}&exclude=.pagent*")
    assert packed.status_code == 200
    if form == "tar":
        assert packed.headers["Content-Length"] == str(len(packed.content))
    chunked = iter([packed.content[start : start + 70_001] for start in range(0, len(packed.content), 70_001)])
    sent = other.archive("", "POST", data=chunked if seed == 2 else packed.content)
    assert (sent.status_code, sent.content) == (200, b"")
    grain = 100 if form == "zip" else 1
    assert tree(other.root, grain) == tree(sandbox.root, grain)


@needed("tar", "xz", "zstd")
@pytest.mark.parametrize("compression", ["-c", "-cz", "-cJ", "-c --zstd"])
def test_archives_of_the_system_s_tar_come_back_the_same(sandbox: Sandbox, tmp_path: Path, compression: str) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    source.mkdir()
    back.mkdir()
    grow(source, 5)
    made = subprocess.run(
        ["tar", *compression.split(), "--format=pax", "-f", "-", "-C", source, "."], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("this machine's tar does not know the compression")
    assert sandbox.archive("/sub/dir", "POST", data=made.stdout).status_code == 200
    assert tree(sandbox.root / "sub" / "dir", 1) == tree(source, 1)
    again = sandbox.archive("/sub/dir").content
    subprocess.run(["tar", "-xp", "-f", "-", "-C", back], input=again, check=True)
    assert tree(back, 1) == tree(source, 1)


def members(content: bytes) -> set[str]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {one.name.removeprefix("./") for one in archive if one.isfile()}


def test_the_originals_masks_and_compression(sandbox: Sandbox) -> None:
    for name in ("a.csv", "b.txt", "d/c.csv", "d/e/f.csv", "d/e/g.log"):
        sandbox.file(name, "POST", data=name.encode())
    ask: Callable[[str], set[str]] = lambda query: members(sandbox.archive(query).content)  # noqa: E731
    assert ask("?include=*.csv") == {"a.csv", "d/c.csv", "d/e/f.csv"}
    assert ask("?include=*.csv&exclude=d/e*") == {"a.csv", "d/c.csv"}
    assert ask("?include=*.csv&include=b*&exclude=*/f.csv") == {"a.csv", "d/c.csv", "b.txt"}
    assert ask("?exclude=d&exclude=.pagent*") == {"a.csv", "b.txt"}
    compressed = sandbox.archive("?include=b.txt&compress=1")
    assert compressed.content[:2] == b"\x1f\x8b"
    assert "Content-Encoding" not in compressed.headers
    plain = sandbox.archive("?include=b.txt&compress=0")
    assert members(gzip.decompress(compressed.content)) == members(plain.content) == {"b.txt"}
    head = sandbox.archive("?include=b.txt", "HEAD")
    assert (head.status_code, head.headers["Content-Length"]) == (200, plain.headers["Content-Length"])
    assert sandbox.archive("?format=rar").status_code == 400
    assert sandbox.archive("/nowhere").status_code == 404


# -- intruders --------------------------------------------------------------------------------------------------


def tar_of(*infos: tarfile.TarInfo) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for info in infos:
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    return made.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, target, size, 0o755
    return info


INTRUDERS = {
    "parent": (403, "../evil", [member("../evil", size=5)]),
    "parent within": (403, "a/../../evil", [member("a/../../evil", size=5)]),
    "absolute": (403, "/tmp/evil", [member("/tmp/evil", size=5)]),
    "absolute link": (403, "evil", [member("evil", tarfile.SYMTYPE, "/etc/passwd")]),
    "link to the parent": (403, "d/evil", [member("d", tarfile.DIRTYPE), member("d/evil", tarfile.SYMTYPE, "../../x")]),
    "hard link outside": (403, "evil", [member("evil", tarfile.LNKTYPE, "../../../etc/passwd")]),
    "device": (400, "evil", [member("evil", tarfile.CHRTYPE)]),
    "disk": (400, "evil", [member("evil", tarfile.BLKTYPE)]),
    "fifo": (400, "evil", [member("evil", tarfile.FIFOTYPE)]),
    "through a link of its own": (
        403,
        "l",
        [member("l", tarfile.SYMTYPE, ".."), member("l/evil", size=5)],
    ),
}


@pytest.mark.parametrize("case", INTRUDERS)
def test_what_would_leave_the_sandbox_is_refused_by_name(sandbox: Sandbox, case: str) -> None:
    status, name, infos = INTRUDERS[case]
    around = sorted(one.name for one in sandbox.root.parent.iterdir())
    answer = sandbox.archive("", "POST", data=tar_of(member("before", size=3), *infos, member("after", size=3)))
    assert answer.status_code == status, answer.text
    assert name in answer.json()["detail"]
    assert sorted(one.name for one in sandbox.root.parent.iterdir()) == around
    assert not os.path.lexists("/tmp/evil")
    assert not (sandbox.root / "after").exists()
    left = {one.name for one in sandbox.root.rglob("*") if not one.name.startswith(".pagent")}
    assert left <= {"before", "d"}


def test_an_archive_below_a_job_s_own_link_goes_nowhere(sandbox: Sandbox, tmp_path: Path) -> None:
    (sandbox.root / "out").symlink_to(tmp_path)
    for path, data in (("/out", tar_of(member("x", size=1))), ("", tar_of(member("out/x", size=1)))):
        assert sandbox.archive(path, "POST", data=data).status_code == 403
    assert sandbox.archive("/out").status_code == 403
    assert list(tmp_path.iterdir()) == []


# -- bombs and breaks -------------------------------------------------------------------------------------------


def zeros_in_zip(size: int) -> bytes:
    made = io.BytesIO()
    with (
        zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("zeros", "w", force_zip64=True) as file,
    ):
        for _ in range(size // MIB):
            file.write(bytes(MIB))
    return made.getvalue()


def test_bombs_are_stopped_at_the_sandbox_s_limit(router: Router, launch: Callable[..., Any]) -> None:
    agent: Agent = launch(start_agent, router, jobs__limits__sandbox_size=4 * MIB)
    sandbox = Sandbox(router, agent)
    bomb = tar_of(member("zeros", size=64 * MIB))
    memory = PeakMemory(descendants(agent.pid))
    for data in (bomb, gzip.compress(bomb, 1), zstandard.compress(bomb), zeros_in_zip(64 * MIB)):
        answer = sandbox.archive("", "POST", data=data)
        assert answer.status_code == 413, answer.text
        assert str(4 * MIB) in answer.json()["detail"], answer.text
        used = sum(one.lstat().st_blocks * 512 for one in sandbox.root.rglob("*"))
        assert used <= 5 * MIB
    assert max(memory.growth().values()) < 64 * MIB
    assert sandbox.file("f", "POST", data=bytes(MIB)).status_code == 200
    assert sandbox.file("g", "POST", data=bytes(6 * MIB)).status_code == 507


@pytest.mark.parametrize("form", ["tar.gz", "zip"])
def test_an_archive_that_swells_too_much_is_stopped(sandbox: Sandbox, form: str) -> None:
    """1 GiB of zeros in 1 MiB: over 200 times its own size once 64 MiB are unpacked."""
    data = gzip.compress(tar_of(member("zeros", size=256 * MIB)), 9) if form == "tar.gz" else zeros_in_zip(256 * MIB)
    answer = sandbox.archive("", "POST", data=data)
    assert answer.status_code == 413
    assert "200" in answer.json()["detail"]
    assert sum(one.lstat().st_blocks * 512 for one in sandbox.root.rglob("*")) < 80 * MIB


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_an_archive_upload_that_is_cut_leaves_no_half_file(sandbox: Sandbox, framing: str) -> None:
    """Whole members that came before the cut stay."""
    dice = random.Random(2)
    contents = {f"f{number}": dice.randbytes(400_000) for number in range(8)}
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    body = made.getvalue()
    url = urlsplit(sandbox.router.url)
    for size in (100, 300_000, 1_000_000, 2_222_222):
        head = f"POST {sandbox.path}/archive HTTP/1.1\r\nHost: localhost\r\n"
        if framing == "length":
            request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:size]
        else:
            request = f"{head}Transfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n".encode() + body[:size]
        with socket.create_connection((url.hostname or "", url.port or 0), timeout=30) as client:
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass

        def whole() -> bool:
            found = [one for one in sandbox.root.iterdir() if not one.name.startswith(".pagent")]
            try:
                return all(one.read_bytes() == contents.get(one.name) for one in found)
            except FileNotFoundError:  # the half one was removed meanwhile
                return False

        wait_until(whole)
    assert sandbox.archive("", "POST", data=body[: len(body) // 2]).status_code == 400
    assert sandbox.archive("", "POST", data=body).status_code == 200


def test_ten_thousand_small_files_come_back_the_same(sandbox: Sandbox, other: Sandbox) -> None:
    for folder in range(100):
        (sandbox.root / f"d{folder}").mkdir()
        for number in range(100):
            (sandbox.root / f"d{folder}" / f"f{number}").write_bytes(b"%d" % number * 100)
    packed = sandbox.archive("?exclude=.pagent*")
    assert other.archive("", "POST", data=packed.content).status_code == 200
    assert tree(other.root, 1) == tree(sandbox.root, 1)


# -- kinds of archives, and trees that are too deep ---------------------------------------------------------------


def old_directory(name: str) -> bytes:
    """A directory as old tars wrote it, before the format had a type for it."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[156:157] = b"0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def windows_zip(**members: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.filename, info.create_system = name.replace("__", "\\"), 0
            archive.writestr(info, data)
    return made.getvalue()


def test_archives_of_old_and_foreign_programs_are_unpacked(sandbox: Sandbox) -> None:
    ends_without_a_mark = tar_of(member("whole", size=512))[:1024]
    for data in (old_directory("v7/") + bytes(1024), windows_zip(dir__=b"", dir__f=b"x"), ends_without_a_mark):
        answer = sandbox.archive("", "POST", data=data)
        assert answer.status_code == 200, answer.text
    assert (sandbox.root / "v7").is_dir()
    assert (sandbox.root / "dir" / "f").read_bytes() == b"x"
    assert (sandbox.root / "whole").read_bytes() == bytes(512)


@needed("bsdtar")
@pytest.mark.parametrize("how", ["-j", "-J", "--lz4", "--format=7zip", "--format=zip", "--format=newc"])
def test_archives_that_libarchive_reads_come_back_the_same(sandbox: Sandbox, tmp_path: Path, how: str) -> None:
    dice = random.Random(how)
    contents = {f"f{number}": dice.randbytes(dice.choice((0, 1, 70_000, 900_000))) for number in range(12)}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    archive = subprocess.run(
        ["bsdtar", "-c", how, "-f", "-", "-C", tmp_path, *contents], check=True, capture_output=True
    ).stdout
    pieces = iter([archive[start : start + 70_001] for start in range(0, len(archive), 70_001)])
    answer = sandbox.archive("", "POST", data=pieces)
    assert answer.status_code == 200, answer.text
    assert {name: (sandbox.root / name).read_bytes() for name in contents} == contents
    bad = archive[: len(archive) // 2] + bytes(1000) + archive[len(archive) // 2 + 1000 :]
    assert sandbox.archive("/bad", "POST", data=bad).status_code in (200, 400)
    assert sandbox.archive("/cut", "POST", data=archive[: len(archive) // 2]).status_code == 400


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@needed("bsdtar")
def test_a_client_that_leaves_ends_the_process_that_reads_its_archive(sandbox: Sandbox, agent: Agent) -> None:
    def readers() -> list[int]:
        return [pid for pid in descendants(agent.pid) if b"archive_reader" in command_of(pid)]

    start = f"POST {sandbox.path}/archive HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\n".encode()
    url = urlsplit(sandbox.router.url)
    with socket.create_connection((url.hostname or "", url.port or 0), timeout=30) as client:
        client.sendall(start + bz2.compress(random.Random(1).randbytes(50_000)))
        wait_until(lambda: len(readers()) == 1)
    wait_until(lambda: not readers())


def test_a_tree_too_deep_for_archives_is_refused_and_costs_no_memory(sandbox: Sandbox, agent: Agent) -> None:
    here = os.open(sandbox.root, os.O_PATH)
    for _ in range(700):
        os.mkdir("d" * 255, dir_fd=here)
        below = os.open("d" * 255, os.O_PATH, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    memory = PeakMemory(descendants(agent.pid))
    for form in ("tar", "tar.gz", "tar.zst", "zip"):
        answer = sandbox.archive(f"?format={form}")
        assert answer.status_code == 413, answer.text[:300]
        assert "exclude" in answer.json()["detail"]
        assert sandbox.archive(f"?format={form}&exclude=d*").status_code == 200
    assert sandbox.file("", "GET").status_code == 200
    assert max(memory.growth().values()) < 32 * MIB
