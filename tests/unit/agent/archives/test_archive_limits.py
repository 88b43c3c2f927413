"""Limits and damage: bombs are stopped, archives that are cut or damaged are refused."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prouter.agent.archives import ArchiveLimits
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.errors import Conflict, Forbidden, InvalidRequest, NoSpace, TooLarge
from tests.support.archives import make_tar, make_zip, packed, special, unpack


@pytest.mark.parametrize(
    ("archive", "limits", "word"),
    [
        (make_tar(("a", bytes(600)), ("b", bytes(600))), ArchiveLimits(sandbox_size=8000), "8000 bytes"),
        (
            make_zip(("a", bytes(600)), ("b", bytes(600)), seekable=False),
            ArchiveLimits(sandbox_size=8000),
            "8000 bytes",
        ),
        (make_tar(*[(f"f{n}", b"") for n in range(11)]), ArchiveLimits(members=10), "10 members"),
        (make_tar(*[special(f"d{n}", tarfile.DIRTYPE) for n in range(11)]), ArchiveLimits(members=10), "10 members"),
        (gzip.compress(make_tar(("a", bytes(4 << 20)))), ArchiveLimits(ratio=100, ratio_from=1 << 20), "ratio"),
        (zstandard.compress(make_tar(("a", bytes(4 << 20)))), ArchiveLimits(ratio=100, ratio_from=1 << 20), "ratio"),
        (lzma.compress(make_tar(("a", bytes(4 << 20)))), ArchiveLimits(ratio=100, ratio_from=1 << 20), "ratio"),
        (make_zip(("a", bytes(4 << 20))), ArchiveLimits(ratio=100, ratio_from=1 << 20), "ratio"),
        (gzip.compress(make_tar() + bytes(4 << 20)), ArchiveLimits(ratio=100, ratio_from=1 << 20), "ratio"),
    ],
    ids=["tar bytes", "zip bytes", "files", "directories", "gzip", "zstd", "xz", "zip", "after the end"],
)
def test_bombs_are_stopped_at_the_limit_they_burst(
    sandbox: Sandbox, archive: bytes, limits: ArchiveLimits, word: str
) -> None:
    with pytest.raises(TooLarge, match=word):
        unpack(sandbox, archive, limits=limits)
    assert sandbox.size_bytes() < 2 << 20


def test_a_bomb_within_one_chunk_takes_no_memory(sandbox: Sandbox) -> None:
    archive = zstandard.compress(make_tar(("a", b""))[:-10240] + bytes(100 << 20))
    code = (
        "import resource, sys\nfrom prouter.agent.sandbox.sandbox import Sandbox\n"
        "from prouter.agent.archives import Unpacker, ArchiveLimits\nfrom prouter.errors import TooLarge\n"
        "data = sys.stdin.buffer.read()\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "unpacker = Unpacker(Sandbox(sys.argv[1]), limits=ArchiveLimits(ratio=None))\n"
        "unpacker.feed(data)\nunpacker.finish()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", code, str(sandbox.root)]
    done = subprocess.run(command, input=archive, capture_output=True, check=True, timeout=60)
    assert int(done.stdout) < 16 << 10  # KiB


@pytest.mark.parametrize("archive_format", ["tar", "tar.gz", "tar.xz", "tar.zst", "zip"])
def test_a_cut_archive_is_refused_wherever_it_is_cut(places: Callable[[], Sandbox], archive_format: str) -> None:
    source = places()
    (source.root / "a").write_bytes(os.urandom(1500))
    (source.root / "d").mkdir()
    (source.root / "d" / "b").write_bytes(b"b" * 700)
    archive = packed(source, "tar" if archive_format == "tar.xz" else archive_format)
    if archive_format == "tar.xz":
        archive = lzma.compress(archive)
    end = len(archive) - 513 if archive_format == "tar" else len(archive) - 1  # of tar's end mark, one block is enough
    copy = places()
    step = 499 if archive_format in ("tar.xz", "zip") else 97  # a process for each
    for cut in sorted({0, 1, 100, 511, 512, 513, end, *range(0, end, step)}):
        with pytest.raises(InvalidRequest):
            unpack(copy, archive[:cut])
        for path in copy.root.rglob("*"):
            assert not path.is_file() or path.stat().st_size in (1500, 700)


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=150)
@given(data=st.data(), archive_format=st.sampled_from(["tar", "tar.gz", "tar.zst", "zip"]))
def test_damage_raises_our_errors_only_and_leaks_nothing(
    places: Callable[[], Sandbox], data: st.DataObject, archive_format: str
) -> None:
    source, copy = places(), places()
    (source.root / "a").write_bytes(bytes(range(256)) * 3)
    (source.root / "d").mkdir()
    (source.root / "d" / "link").symlink_to("../a")
    for path in (source.root / "d" / "link", source.root / "d", source.root / "a"):
        os.utime(path, ns=(10**18 + 1, 10**18 + 1), follow_symlinks=False)  # the same bytes each time
    archive = bytearray(packed(source, archive_format))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.floats(0, 1, exclude_max=True))
        archive[int(place * len(archive))] = data.draw(st.integers(0, 255))
    before = len(os.listdir("/proc/self/fd"))
    with contextlib.suppress(InvalidRequest, Forbidden, Conflict, TooLarge):
        unpack(copy, bytes(archive), data.draw(st.sampled_from([1, 100, 1 << 20])))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "archive",
    [b"", b"hello", bytes(range(1, 256)) * 20, b"PK\3\4", gzip.compress(b"no tar" * 500)],
    ids=["empty", "short", "binary", "begins as a zip", "gzip of something else"],
)
def test_what_is_no_archive_is_refused(sandbox: Sandbox, archive: bytes) -> None:
    with pytest.raises(InvalidRequest):
        unpack(sandbox, archive)


def test_archives_that_need_too_much_memory_are_refused(sandbox: Sandbox) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 512 << 20}]
    archive = lzma.compress(make_tar(("a", b"x")), filters=filters)
    with pytest.raises(InvalidRequest, match="256 MiB"):
        unpack(sandbox, archive)


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(tmp_path / "disk")]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let root mount")
    try:
        sandbox = Sandbox(tmp_path / "disk" / "one")
        sandbox.create()
        with pytest.raises(NoSpace):
            unpack(sandbox, make_tar(("a", bytes(2 << 20))))
        assert os.listdir(sandbox.root) == []
    finally:
        subprocess.run(["umount", "-l", tmp_path / "disk"], check=True)


def test_zlib_is_not_fed_more_than_it_can_give_back(sandbox: Sandbox) -> None:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = bytes(1 << 18) + b"end"
    body = deflater.compress(data) + deflater.flush()
    header = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 8, 8, 0, 33, 0, 0, 0, 1, 0) + b"a"
    central = struct.pack(
        "<4s6H3I5H2I", b"PK\1\2", 20, 20, 8, 8, 0, 33, zlib.crc32(data), len(body), len(data), 1, *[0] * 6
    )
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(central) + 1, len(header) + len(body) + 12, 0)
    descriptor = struct.pack("<3I", zlib.crc32(data), len(body), len(data))  # without its optional signature
    assert unpack(sandbox, header + body + descriptor + central + b"a" + end).bytes == len(data)
    assert (sandbox.root / "a").read_bytes() == data


def test_the_sandbox_s_limit_counts_blocks_and_directories(places: Callable[[], Sandbox]) -> None:
    sandbox = places()
    limits = ArchiveLimits(sandbox_size=40 * 4096)
    with pytest.raises(TooLarge, match="size limit"):
        unpack(sandbox, make_tar(*[(f"f{n}", b"1") for n in range(41)]), limits=limits)
    assert sandbox.size_bytes() == 40 * 4096
    if not sandbox.root.stat().st_blocks:
        return  # tmpfs: directories take no blocks
    with pytest.raises(TooLarge, match="size limit"):
        unpack(places(), make_tar(*[(f"{n}/a/b/f", b"") for n in range(100)]), limits=limits)


def test_an_archive_unpacked_again_needs_no_more_room(sandbox: Sandbox) -> None:
    archive = make_tar(*[(f"f{n}", bytes(4096)) for n in range(9)])
    for _ in range(3):
        unpack(sandbox, archive, limits=ArchiveLimits(sandbox_size=10 * 4096))


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_what_follows_a_compressed_archive_is_ignored(sandbox: Sandbox, compress: Callable[[bytes], bytes]) -> None:
    archive = compress(make_tar(("a", b"1"), ("b", b"2")))
    assert unpack(sandbox, archive + b"what is this?" * 100).files == 2
    with pytest.raises(InvalidRequest):
        unpack(sandbox, archive[: len(archive) // 2] + b"what is this?" * 100)
