"""A tree that is packed and unpacked comes back the same; other programs read our tars, and we read theirs."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import stat
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from prouter.agent.archives import FORMATS
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.agent.sandbox.scratch import SCRATCH_NAME
from tests.support.archives import make_tar, packed, special, tree, unpack
from tests.support.programs import needed

NAMES = st.binary(min_size=1, max_size=120).filter(
    lambda n: n not in (b".", b"..", SCRATCH_NAME) and not set(n) & {0, 0x2F}
)
"""Any name but that of the job's temporary files, which stay out of archives. Hypothesis finds it in our source."""
TIMES = st.integers(min_value=-(10**18), max_value=4 * 10**18)
MODES = st.integers(min_value=0, max_value=0o777)
FILES = st.tuples(st.just("file"), MODES, TIMES, st.binary(max_size=2000))
LINKS = st.tuples(st.just("link"), st.just(0), TIMES, NAMES)
TREES = st.recursive(
    st.dictionaries(NAMES, FILES | LINKS, max_size=3),
    lambda inner: st.dictionaries(NAMES, FILES | LINKS | st.tuples(st.just("dir"), MODES, TIMES, inner), max_size=3),
    max_leaves=8,
)


def grow(folder: bytes, nodes: dict[bytes, tuple[str, int, int, object]]) -> None:
    for name, (kind, mode, mtime_ns, inside) in nodes.items():
        path = os.path.join(folder, name)
        if kind == "link":
            assert isinstance(inside, bytes)
            os.symlink(inside, path)
            os.utime(path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)
            continue
        if kind == "dir":
            assert isinstance(inside, dict)
            os.mkdir(path)
            grow(path, inside)
        else:
            assert isinstance(inside, bytes)
            Path(os.fsdecode(path)).write_bytes(inside)
        os.chmod(path, mode)
        os.utime(path, ns=(mtime_ns, mtime_ns))


@pytest.mark.parametrize("archive_format", FORMATS)
@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=40)
@given(nodes=TREES, step=st.integers(min_value=1, max_value=5000))
@example(nodes={}, step=100)
@example(nodes={b"a" * 120: ("dir", 0, -1, {b"\xff" * 120: ("file", 0o777, -1_500_000_000, b"x" * 513)})}, step=1)
def test_a_tree_comes_back_the_same(archive_format: str, nodes: dict[bytes, object], step: int) -> None:
    grain = 100 if archive_format == "zip" else 1  # zip's finest time
    with tempfile.TemporaryDirectory() as place:
        source, copy = Sandbox(Path(place) / "source"), Sandbox(Path(place) / "copy")
        source.create()
        copy.create()
        grow(os.fsencode(source.root), nodes)  # type: ignore[arg-type]
        archive = packed(source, archive_format)
        unpack(copy, archive, step)
        assert tree(copy.root, grain) == tree(source.root, grain)
        assert stat.S_IMODE(copy.root.stat().st_mode) == 0o700


def test_python_s_tarfile_reads_ours(sample: Sandbox, tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed(sample))) as tar:
        tar.extraction_filter = lambda member, _path: member  # all as it is, which old Pythons do anyway
        tar.extractall(tmp_path / "out")
    assert {k: (v[0], v[1], v[3]) for k, v in tree(tmp_path / "out").items()} == {
        k: (v[0], v[1], v[3]) for k, v in tree(sample.root).items()
    }


@pytest.mark.parametrize("archive_format", ["tar", "tar.gz", "tar.zst"])
def test_the_system_s_tar_reads_ours(sample: Sandbox, tmp_path: Path, archive_format: str) -> None:
    archive = packed(sample, archive_format)
    if archive_format == "tar.zst":
        archive = zstandard.ZstdDecompressor().decompressobj().decompress(archive)
    (tmp_path / "out").mkdir()
    flags = "-xzf" if archive_format == "tar.gz" else "-xf"
    subprocess.run(["tar", flags, "-", "-C", tmp_path / "out"], input=archive, check=True, capture_output=True)
    assert tree(tmp_path / "out") == tree(sample.root)


def test_python_s_zipfile_reads_ours(sample: Sandbox) -> None:
    with zipfile.ZipFile(io.BytesIO(packed(sample, "zip"))) as archive:
        assert archive.testzip() is None
        assert archive.read("dir/sub/größe ☃") == b"text " * 100_000
        assert archive.getinfo("empty dir/").is_dir()
        assert archive.getinfo("dir/script.sh").external_attr >> 16 == 0o100755
        assert archive.getinfo("link").external_attr >> 28 == 0o12


@needed("unzip")
def test_unzip_reads_ours(sample: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "it.zip").write_bytes(packed(sample, "zip"))
    subprocess.run(["unzip", "-q", tmp_path / "it.zip", "-d", tmp_path / "out"], check=True)
    got, there = tree(tmp_path / "out", 10**9), tree(sample.root, 10**9)
    assert {k: (v[0], v[1], v[3]) for k, v in got.items()} == {k: (v[0], v[1], v[3]) for k, v in there.items()}
    assert got[b"dir/script.sh"] == there[b"dir/script.sh"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress, zstandard.compress])
def test_tars_of_others_are_unpacked(sandbox: Sandbox, form: int, compress: Callable[[bytes], bytes]) -> None:
    long = "d/" + "x" * 90 + "/" + "y" * 90
    big = special("big", tarfile.REGTYPE)
    big.mtime = 1_700_000_000
    archive = make_tar(("a", b"1" * 700), special("d", tarfile.DIRTYPE), (long, b"long"), big, form=form)
    done = unpack(sandbox, compress(archive), 777)
    assert (done.files, done.directories, done.bytes) == (3, 1, 704)
    assert (sandbox.root / long).read_text() == "long"
    assert (sandbox.root / "big").stat().st_mtime == 1_700_000_000
    assert stat.S_IMODE((sandbox.root / "a").stat().st_mode) == 0o644


def test_gnu_s_numbers_and_long_links_are_understood(sandbox: Sandbox) -> None:
    old = special("old", tarfile.REGTYPE)
    old.mtime = -86400
    link = special("link", tarfile.SYMTYPE, "t" * 150)
    unpack(sandbox, make_tar(old, link, form=tarfile.GNU_FORMAT))
    assert (sandbox.root / "old").stat().st_mtime == -86400
    assert os.readlink(sandbox.root / "link") == "t" * 150


@pytest.mark.parametrize("archive_format", ["tar.gz", "tar.xz", "tar.zst"])
def test_several_compressed_members_are_one_archive(sandbox: Sandbox, archive_format: str) -> None:
    compressions: dict[str, Callable[[bytes], bytes]] = {
        "tar.gz": gzip.compress,
        "tar.xz": lzma.compress,
        "tar.zst": zstandard.compress,
    }
    compress = compressions[archive_format]
    archive = make_tar(("a", os.urandom(100_000)))
    parts = [compress(archive[start : start + 30_000]) for start in range(0, len(archive), 30_000)]
    assert unpack(sandbox, b"".join(parts)).bytes == 100_000
