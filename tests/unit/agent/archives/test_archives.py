"""Archives of sandboxes: a packed tree comes back the same; members that would leave or exceed limits are refused."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import socket
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from prouter.agent.archives import FORMATS, ArchiveLimits, Packer, Unpacked, Unpacker, pack
from prouter.agent.archives.members import Member, Tree
from prouter.agent.archives.zip_writer import ZipWriter
from prouter.agent.sandbox import trees
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.agent.sandbox.scratch import SCRATCH_NAME
from prouter.agent.sandbox.uploads import Upload
from prouter.errors import Conflict, Forbidden, InvalidRequest, NoSpace, NotFound, PRouterError, TooLarge
from tests.support.programs import needed

Node = tuple[str, int, bytes | int]  # kind, mode, contents or link target


@pytest.fixture
def places(tmp_path: Path) -> Callable[[], Sandbox]:
    """Makes fresh sandboxes."""
    count = iter(range(1_000_000))

    def make() -> Sandbox:
        sandbox = Sandbox(tmp_path / f"sandbox{next(count)}")
        sandbox.create()
        return sandbox

    return make


@pytest.fixture
def sandbox(places: Callable[[], Sandbox]) -> Sandbox:
    return places()


def unpack(sandbox: Sandbox, archive: bytes, step: int = 65_536, **options: object) -> Unpacked:
    with Unpacker(sandbox, **options) as unpacker:  # type: ignore[arg-type]
        for start in range(0, len(archive), step):
            unpacker.feed(archive[start : start + step])
        return unpacker.finish()


def packed(sandbox: Sandbox, archive_format: str = "tar", **options: object) -> bytes:
    return b"".join(pack(sandbox, archive_format=archive_format, **options))  # type: ignore[arg-type]


def make_tar(*members: tarfile.TarInfo | tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for member in members:
            if isinstance(member, tuple):
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
            else:
                tar.addfile(member)
    return out.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, 0o755
    return info


def tree(root: Path, grain: int = 1) -> dict[bytes, tuple[object, ...]]:
    """Everything below a directory: kind, mode, time to `grain` nanoseconds, contents or target."""
    found: dict[bytes, tuple[object, ...]] = {}
    for folder, folders, names in os.walk(os.fsencode(root)):
        for name in folders + names:
            path = os.path.join(folder, name)
            info = os.lstat(path)
            kind = stat.S_IFMT(info.st_mode)
            contents: object = None
            if kind == stat.S_IFLNK:
                contents = os.readlink(path)
            elif kind == stat.S_IFREG:
                contents = Path(os.fsdecode(path)).read_bytes()
            mode = None if kind == stat.S_IFLNK else stat.S_IMODE(info.st_mode)
            found[os.path.relpath(path, os.fsencode(root))] = (kind, mode, info.st_mtime_ns // grain, contents)
    return found


# Round trips

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


@pytest.fixture
def sample(places: Callable[[], Sandbox]) -> Sandbox:
    """A tree with a bit of everything."""
    sandbox = places()
    root = sandbox.root
    (root / "empty dir").mkdir()
    (root / "dir" / "sub").mkdir(parents=True)
    (root / "dir" / "script.sh").write_text("#!/bin/sh\n")
    (root / "dir" / "script.sh").chmod(0o755)
    (root / "dir" / "sub" / ("n" * 200)).write_bytes(os.urandom(5000))
    (root / "dir" / "sub" / "größe ☃").write_bytes(b"text " * 100_000)
    (root / "link").symlink_to("dir/script.sh")
    (root / "empty").touch()
    (root / "dir").chmod(0o750)
    for path in [*root.rglob("*")]:
        os.utime(path, ns=(1_700_000_000_123_456_700,) * 2, follow_symlinks=False)
    return sandbox


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


# Zips of others


class Unseekable(io.BytesIO):
    """A file that can only be written on: zipfile then puts sizes after the data."""

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        raise OSError

    def seek(self, *_: object) -> int:
        raise OSError


def make_zip(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED, seekable: bool = True) -> bytes:
    out = io.BytesIO() if seekable else Unseekable()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return out.getvalue()


@pytest.mark.parametrize("seekable", [True, False])
@pytest.mark.parametrize("step", [1, 1000, 1 << 20])
def test_deflated_zips_of_others_are_unpacked(sandbox: Sandbox, seekable: bool, step: int) -> None:
    data = os.urandom(3000) + bytes(10_000)
    archive = make_zip(("dir/", b""), ("dir/a", data), ("b", b""), ("c", b"c"), seekable=seekable)
    done = unpack(sandbox, archive, step)
    assert (done.files, done.directories) == (3, 1)
    assert (sandbox.root / "dir" / "a").read_bytes() == data


def test_stored_zips_are_unpacked_when_sizes_come_first(sandbox: Sandbox) -> None:
    archive = make_zip(("a", b"PK\3\4" * 1000), ("d/", b""), method=zipfile.ZIP_STORED)
    unpack(sandbox, archive, 999)
    assert (sandbox.root / "a").read_bytes() == b"PK\3\4" * 1000


@pytest.mark.parametrize("step", [1, 777, 1 << 16])
def test_stored_members_without_a_size_end_at_the_descriptor_that_fits(sandbox: Sandbox, step: int) -> None:
    inner = make_zip(("in", b"1" * 50), method=zipfile.ZIP_STORED, seekable=False)  # descriptors of its own
    data = inner + b"PK\7\x08" * 300 + os.urandom(2000) + b"PK\7"
    archive = make_zip(("a", data), ("d/", b""), ("e", b""), ("z", b"z"), method=zipfile.ZIP_STORED, seekable=False)
    assert unpack(sandbox, archive, step).files == 3
    assert (sandbox.root / "a").read_bytes() == data
    assert (sandbox.root / "z").read_bytes() == b"z"
    damaged = archive.replace(data, data[:-1] + b"x")
    with pytest.raises(InvalidRequest):
        unpack(sandbox, damaged, step)


def test_zip64_is_understood(sandbox: Sandbox) -> None:
    for seekable in (True, False):
        out = io.BytesIO() if seekable else Unseekable()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open("wide", "w", force_zip64=True) as member:
                member.write(b"wide" * 1000)
            archive.writestr("after", b"after")
        unpack(sandbox, out.getvalue())
        assert (sandbox.root / "wide").read_bytes() == b"wide" * 1000
        assert (sandbox.root / "after").read_bytes() == b"after"


class ManyLinks:
    """A tree of more members than a zip's old end record can count, without the disk."""

    def opened(self) -> Iterator[tuple[Member, None]]:
        for number in range(66_000):
            yield Member(b"%d" % number, stat.S_IFLNK | 0o777, 0, 10**18, b"x"), None


def test_a_zip_of_more_members_than_its_old_end_record_can_count(sandbox: Sandbox) -> None:
    archive = b"".join(ZipWriter(cast("Tree", ManyLinks())).pieces())
    assert archive.count(b"PK\6\6") == 1
    with zipfile.ZipFile(io.BytesIO(archive)) as other:
        assert len(other.infolist()) == 66_000
    with pytest.raises(TooLarge, match="members"):
        unpack(sandbox, archive, limits=ArchiveLimits(members=1000))


def test_encrypted_zips_are_refused_by_name(sandbox: Sandbox) -> None:
    plain = bytearray(make_zip(("secret", b"x" * 100)))
    plain[6] |= 1
    plain[plain.rindex(b"PK\1\2") + 8] |= 1
    with pytest.raises(InvalidRequest, match=r"secret.*ncrypt"):
        unpack(sandbox, bytes(plain))
    assert list(sandbox.root.iterdir()) == []


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zips_of_other_methods_are_unpacked(sandbox: Sandbox, method: int) -> None:
    unpack(sandbox, make_zip(("file", b"x" * 100_000), method=method))
    assert (sandbox.root / "file").read_bytes() == b"x" * 100_000


def zip_with_mode(name: str, data: bytes, mode: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        archive.writestr(info, data)
    return out.getvalue()


def test_links_in_zips_are_made_or_refused(sandbox: Sandbox) -> None:
    unpack(sandbox, zip_with_mode("link", b"target", 0o120777))
    assert os.readlink(sandbox.root / "link") == "target"
    with pytest.raises(Forbidden, match="evil"):
        unpack(sandbox, zip_with_mode("evil", b"../../etc/passwd", 0o120777))
    assert os.listdir(sandbox.root) == ["link"]
    with pytest.raises(InvalidRequest, match="device"):
        unpack(sandbox, zip_with_mode("device", b"", 0o020666))


def test_a_central_directory_that_lists_something_else_changes_nothing_else(sandbox: Sandbox) -> None:
    (sandbox.root / "mine").write_text("x")
    archive = zip_with_mode("fake", b"", 0o100777)
    at = archive.rindex(b"fake")
    unpack(sandbox, archive[:at] + b"mine" + archive[at + 4 :])
    assert stat.S_IMODE((sandbox.root / "mine").stat().st_mode) == 0o644
    assert (sandbox.root / "fake").exists()


# What is refused


@pytest.mark.parametrize(
    ("member", "error"),
    [
        (("../evil", b"x"), Forbidden),
        (("a/../../evil", b"x"), Forbidden),
        (("/tmp/evil", b"x"), Forbidden),
        (special("evil", tarfile.SYMTYPE, "../outside"), Forbidden),
        (special("evil", tarfile.SYMTYPE, "/etc/passwd"), Forbidden),
        (special("d/evil", tarfile.SYMTYPE, "../../outside"), Forbidden),
        (special("evil", tarfile.SYMTYPE, "loop/.."), Forbidden),
        (special("evil", tarfile.SYMTYPE, "missing/../.."), Forbidden),
        (special("evil", tarfile.LNKTYPE, "../outside"), Forbidden),
        (special("evil", tarfile.LNKTYPE, "/etc/passwd"), Forbidden),
        (special("evil", tarfile.LNKTYPE, "loop"), None),
        (special("evil", tarfile.LNKTYPE, "missing"), InvalidRequest),
        (special("evil", tarfile.CHRTYPE), InvalidRequest),
        (special("evil", tarfile.BLKTYPE), InvalidRequest),
        (special("evil", tarfile.FIFOTYPE), InvalidRequest),
        (special("evil", tarfile.CONTTYPE + b""), None),
        (special("evil", b"Z"), None),  # POSIX: a kind that is not known is a file
        (special("evil", tarfile.GNUTYPE_SPARSE), None),
        (special("evil/x", tarfile.SYMTYPE, "x" * 5000), InvalidRequest),
    ],
)
def test_members_that_lead_outside_or_are_no_files_are_refused_by_name(
    sandbox: Sandbox, tmp_path: Path, member: tarfile.TarInfo, error: type[PRouterError] | None
) -> None:
    (tmp_path / "outside").write_text("untouched")
    archive = make_tar(("before", b"stays"), special("loop", tarfile.SYMTYPE, "."), member, ("after", b"never"))
    if error is None:
        unpack(sandbox, archive)
        return
    with pytest.raises(error, match="evil"):
        unpack(sandbox, archive)
    assert (sandbox.root / "before").read_text() == "stays"
    assert not (sandbox.root / "after").exists()
    assert not (sandbox.root / "evil").exists()
    assert sorted(os.listdir(tmp_path)) == ["outside", sandbox.root.name]
    assert (tmp_path / "outside").read_text() == "untouched"


def test_members_below_a_link_that_leaves_are_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (sandbox.root / "link").symlink_to(outside)
    for archive in (make_tar(("link/evil", b"x")), make_zip(("link/evil", b"x"))):
        with pytest.raises(Forbidden):
            unpack(sandbox, archive)
    with pytest.raises(Forbidden):
        unpack(sandbox, make_tar(special("hard", tarfile.LNKTYPE, "link/file")))
    assert os.listdir(outside) == []


def test_links_that_stay_inside_are_made(sandbox: Sandbox) -> None:
    archive = make_tar(
        ("d/e/file", b"data"),
        special("d/up", tarfile.SYMTYPE, "../d/e/file"),
        special("across", tarfile.SYMTYPE, "d/e/../e/file"),
        special("dangling", tarfile.SYMTYPE, "not/yet"),
        special("hard", tarfile.LNKTYPE, "d/e/file"),
    )
    assert unpack(sandbox, archive).links == 4
    for name in ("d/up", "across", "hard"):
        assert (sandbox.root / name).read_text() == "data"
    assert (sandbox.root / "hard").stat().st_nlink == 2
    assert unpack(sandbox, archive).links == 4  # and again, over what is there
    assert sorted(os.listdir(sandbox.root)) == ["across", "d", "dangling", "hard"]


def test_setuid_bits_and_owners_are_ignored(sandbox: Sandbox) -> None:
    info = special("file", tarfile.REGTYPE)
    info.mode, info.uid, info.gid, info.uname = 0o6755, 12345, 12345, "nobody"
    folder = special("dir", tarfile.DIRTYPE)
    folder.mode = 0o1777
    unpack(sandbox, make_tar(info, folder))
    for name, mode in (("file", 0o755), ("dir", 0o777)):
        found = (sandbox.root / name).stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid) == (mode, os.getuid())


def test_existing_files_are_replaced_and_not_written_through(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("outside")
    os.link(tmp_path / "outside", sandbox.root / "hard")
    (sandbox.root / "soft").symlink_to(tmp_path / "outside")
    (sandbox.root / "plain").write_text("old")
    for archive in (
        make_tar(("hard", b"1"), ("soft", b"2"), ("plain", b"3")),
        make_zip(("hard", b"1"), ("soft", b"2")),
    ):
        unpack(sandbox, archive)
        assert (sandbox.root / "hard").read_text() == "1"
        assert not (sandbox.root / "soft").is_symlink()
    assert (tmp_path / "outside").read_text() == "outside"
    assert sorted(os.listdir(sandbox.root)) == ["hard", "plain", "soft"]


def test_a_directory_and_a_file_of_one_name_are_a_conflict(sandbox: Sandbox) -> None:
    (sandbox.root / "dir").mkdir()
    (sandbox.root / "file").touch()
    for archive in (
        make_tar(("dir", b"x")),
        make_tar(special("dir", tarfile.SYMTYPE, "x")),
        make_tar(special("file", tarfile.DIRTYPE)),
        make_tar(("file/below", b"x")),
        make_zip(("dir", b"x")),
    ):
        with pytest.raises(Conflict):
            unpack(sandbox, archive)
    assert sorted(os.listdir(sandbox.root)) == ["dir", "file"]


def test_the_archive_s_own_root_leaves_the_sandbox_private(sandbox: Sandbox) -> None:
    unpack(sandbox, make_tar(special(".", tarfile.DIRTYPE), special("./", tarfile.DIRTYPE), ("./a", b"x")))
    assert stat.S_IMODE(sandbox.root.stat().st_mode) == 0o700
    assert os.listdir(sandbox.root) == ["a"]


def test_an_archive_may_be_put_into_a_directory(sandbox: Sandbox) -> None:
    archive = make_tar(("a", b"x"), special("hard", tarfile.LNKTYPE, "a"), special("up", tarfile.SYMTYPE, "../in/a"))
    unpack(sandbox, archive, path=b"in/here")
    assert (sandbox.root / "in" / "here" / "hard").read_text() == "x"
    with pytest.raises(Forbidden):
        Unpacker(sandbox, path=b"../x")


# Limits and damage


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


# Packing


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


def test_a_hard_link_to_a_symbolic_link_is_that_link_where_it_stays_inside(sandbox: Sandbox) -> None:
    links = special("d/e/link", tarfile.SYMTYPE, "../../a"), special("d/e/same", tarfile.LNKTYPE, "d/e/link")
    unpack(sandbox, make_tar(("a", b"1"), *links))
    assert (sandbox.root / "d/e/same").readlink() == Path("../../a")
    with pytest.raises(Forbidden, match="top"):
        unpack(sandbox, make_tar(special("top", tarfile.LNKTYPE, "d/e/link")))
    assert not (sandbox.root / "top").is_symlink()


def test_nothing_more_is_unpacked_into_a_sandbox_that_is_being_removed(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacker = Unpacker(sandbox)
    unpacker.feed(make_tar(("a", b""))[:512])
    real = trees.remove

    def remove(parent: int, name: bytes) -> None:
        with pytest.raises(NotFound, match="being removed"):
            unpacker.feed(make_tar(("b", b""))[:512])
        with pytest.raises(NotFound, match="being removed"):
            Upload(sandbox, b"c")
        real(parent, name)

    monkeypatch.setattr(trees, "remove", remove)
    sandbox.remove()
    assert not sandbox.root.exists()
