"""Sparse files in tar archives: unpacked with their holes, whatever GNU tar wrote them with."""

from __future__ import annotations

import random
import subprocess
import tarfile
from pathlib import Path

import pytest

from prouter.agent.archives import ArchiveLimits, Unpacker
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.errors import InvalidRequest

MIB = 1 << 20


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    sandbox = Sandbox(tmp_path / "sandbox")
    sandbox.create()
    return sandbox


def unpack(sandbox: Sandbox, archive: bytes, step: int = 1 << 16) -> None:
    with Unpacker(sandbox, limits=ArchiveLimits(sandbox_size=8 * MIB)) as unpacker:
        for start in range(0, len(archive), step):
            unpacker.feed(archive[start : start + step])
        unpacker.finish()


def sparse_file(path: Path, size: int, parts: int) -> bytes:
    chance = random.Random(parts)
    with path.open("wb") as file:
        for number in range(parts):
            file.seek(number * (size // parts) // 4096 * 4096)
            file.write(chance.randbytes(chance.randrange(1, 5000)))
        file.truncate(size)
    return path.read_bytes()


@pytest.mark.parametrize("form", ["gnu", "posix --sparse-version=1.0", "posix --sparse-version=0.1"])
@pytest.mark.parametrize(("size", "parts"), [(20 * MIB, 0), (20 * MIB, 3), (3 * MIB + 7, 60), (20 * MIB + 1, 300)])
def test_sparse_files_keep_their_holes(sandbox: Sandbox, tmp_path: Path, form: str, size: int, parts: int) -> None:
    folder = tmp_path / "from"
    (folder / ("long" * 40)).mkdir(parents=True)
    data = sparse_file(folder / ("long" * 40) / "a", size, parts) if parts else bytes(size)
    if not parts:
        with (folder / ("long" * 40) / "a").open("wb") as empty:
            empty.truncate(size)
    (folder / "z").write_bytes(b"what follows")
    command = ["tar", "-C", str(folder), "-S", *f"--format={form}".split(), "--sort=name", "-cf", "-", "."]
    archive = subprocess.run(command, capture_output=True, check=True).stdout
    for step in (1 << 16, 511):
        unpack(sandbox, archive, step)
        file = sandbox.root / ("long" * 40) / "a"
        assert file.read_bytes() == data
        assert file.stat().st_mtime_ns // 10**9 == (folder / ("long" * 40) / "a").stat().st_mtime_ns // 10**9
        assert file.stat().st_blocks * 512 <= (folder / ("long" * 40) / "a").stat().st_blocks * 512 + 65536
        assert (sandbox.root / "z").read_bytes() == b"what follows"


def pax_member(stored: bytes, **records: str) -> bytes:
    info = tarfile.TarInfo("GNUSparseFile.0/x")
    info.size = len(stored)
    info.pax_headers = {f"GNU.sparse.{key}": value for key, value in {"name": "evil", **records}.items()}
    padding = bytes(-len(stored) % 512)
    return info.tobuf(tarfile.PAX_FORMAT) + stored + padding + bytes(1024)


V1 = {"major": "1", "minor": "0", "realsize": "100"}


@pytest.mark.parametrize(
    "archive",
    [
        pax_member(b"2\n50\n2\n0\n3\n".ljust(512, b"\0") + b"x" * 5, **V1),
        pax_member(b"99999999\n".ljust(512, b"\0"), **V1),
        pax_member(b"1" * 1024, **V1),
        pax_member(b"-1\n".ljust(512, b"\0"), **V1),
        pax_member(b"1\n0\n", **V1),
    ],
)
def test_maps_that_do_not_fit_are_refused(sandbox: Sandbox, archive: bytes) -> None:
    with pytest.raises(InvalidRequest):
        unpack(sandbox, archive)
    assert list(sandbox.root.iterdir()) == []


@pytest.mark.parametrize(
    "archive",
    [
        pax_member(b"1\n0\n9\n".ljust(512, b"\0") + b"x" * 5, **V1),
        pax_member(b"1\n96\n5\n".ljust(512, b"\0") + b"x" * 5, **V1),
        pax_member(b"x", map="0,1,2", size="9"),
        pax_member(b"x", map="0,1"),
        pax_member(b"x", numblocks="1", offset="0", numbytes="1", size="1"),
    ],
)
def test_maps_that_libarchive_makes_something_of_make_one_small_file(sandbox: Sandbox, archive: bytes) -> None:
    unpack(sandbox, archive)
    (file,) = sandbox.root.iterdir()
    assert file.stat().st_size <= 101
