"""Packing: what goes in, sizes that are promised, and files that change meanwhile."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator

import pytest

from prouter.agent.archives import FORMATS, Packer, pack
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.errors import Conflict, InvalidRequest, NotFound
from tests.support.archives import packed, unpack


def names_in(archive: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return tar.getnames()


def test_masks_choose_what_goes_in(sandbox: Sandbox) -> None:
    for name in ("a.txt", "b.log", "d/c.txt", "d/x/e.txt", "skip/f.txt"):
        path = sandbox.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert names_in(packed(sandbox, include=["*.txt"])) == ["a.txt", "d/c.txt", "d/x/e.txt", "skip/f.txt"]
    assert names_in(packed(sandbox, include=["*.txt"], exclude=["skip", "a*"])) == ["d/c.txt", "d/x/e.txt"]
    assert names_in(packed(sandbox, include=["*.log", "d/c*"])) == ["b.log", "d/c.txt"]
    assert names_in(packed(sandbox, exclude=["skip", "*.txt", "*.log"])) == ["d", "d/x"]
    assert names_in(packed(sandbox, path=b"d")) == ["c.txt", "x", "x/e.txt"]


def test_members_are_sorted_and_chunks_are_large(sandbox: Sandbox) -> None:
    for number in range(300):
        (sandbox.root / f"f{number:03}").write_bytes(bytes(1000))
    chunks = list(pack(sandbox))
    assert all(len(chunk) >= 65_536 for chunk in chunks[:-1])
    found = names_in(b"".join(chunks))
    assert found == sorted(found)


def test_sockets_and_fifos_are_left_out_with_a_note(sandbox: Sandbox) -> None:
    os.mkfifo(sandbox.root / "fifo")
    (sandbox.root / "file").touch()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(sandbox.root / "socket"))
        packer = Packer(sandbox)
        assert names_in(b"".join(packer)) == ["file"]
    assert len(packer.notes) == 2


def test_only_directories_and_known_formats_are_packed(sandbox: Sandbox) -> None:
    (sandbox.root / "file").touch()
    with pytest.raises(Conflict):
        Packer(sandbox, b"file")
    with pytest.raises(NotFound):
        Packer(sandbox, b"missing")
    with pytest.raises(InvalidRequest, match=r"tar\.gz"):
        Packer(sandbox, archive_format="rar")


def test_the_size_of_a_tar_is_told_beforehand(sample: Sandbox) -> None:
    packer = Packer(sample)
    size = packer.size()
    assert size == len(b"".join(packer))
    assert Packer(sample, archive_format="zip").size() is None


def test_a_promised_size_is_kept_when_files_change(places: Callable[[], Sandbox]) -> None:
    sandbox, copy = places(), places()
    for name, length in (("gone", 200_000), ("grown", 10), ("same", 5), ("shrunk", 1000), ("small", 1), ("swapped", 9)):
        (sandbox.root / name).write_bytes(b"x" * length)
    (sandbox.root / "dir").mkdir()
    packer = Packer(sandbox)
    size = packer.size()
    (sandbox.root / "gone").unlink()
    (sandbox.root / "small").unlink()
    (sandbox.root / "dir").rmdir()
    (sandbox.root / "grown").write_bytes(b"y" * 5000)
    (sandbox.root / "shrunk").write_bytes(b"z")
    (sandbox.root / "swapped").unlink()
    os.mkfifo(sandbox.root / "swapped")
    (sandbox.root / "new").touch()
    archive = b"".join(packer)
    assert len(archive) == size
    assert names_in(archive) == ["dir", "grown", "same", "shrunk", ".vanished-while-it-was-packed"]
    unpack(copy, archive)
    assert (copy.root / "grown").read_bytes() == b"y" * 10
    assert (copy.root / "shrunk").read_bytes() == b"z" + bytes(999)
    assert len(packer.notes) == 5
    subprocess.run(["tar", "-tf", "-"], input=archive, check=True, capture_output=True)


@pytest.mark.parametrize("archive_format", FORMATS)
def test_files_that_change_while_they_are_packed_leave_a_valid_archive(
    places: Callable[[], Sandbox], archive_format: str
) -> None:
    sandbox, copy = places(), places()
    for name in "abc":
        (sandbox.root / name).write_bytes(os.urandom(1 << 20))
    pieces: Iterator[bytes] = pack(sandbox, archive_format=archive_format)
    got = [next(pieces)]
    (sandbox.root / "a").write_bytes(b"short")
    (sandbox.root / "b").unlink()
    got.extend(pieces)
    unpack(copy, b"".join(got))
    assert sorted(os.listdir(copy.root)) == ["a", "c"]


def test_a_download_that_is_dropped_gives_its_descriptors_back(sample: Sandbox) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for archive_format in FORMATS:
        pieces = pack(sample, archive_format=archive_format)
        next(pieces)
        del pieces
    assert len(os.listdir("/proc/self/fd")) == before
