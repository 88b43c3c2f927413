"""Damaged and hostile archives: a status below 500, nothing outside the sandbox, no process or memory left behind."""

from __future__ import annotations

import io
import os
import random
import resource
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from prouter.agent.archives import ArchiveLimits, Unpacker, pack
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.errors import PRouterError
from tests.support.programs import needed

pytestmark = needed("bsdtar")

DATA = Path(__file__).parents[3] / "data" / "archives"
SAMPLES = sorted(path.name for path in DATA.iterdir() if path.suffix not in (".json", ".md"))
OWN = ("tar", "tar.gz", "tar.zst", "zip")
OTHERS = (
    "--format=zip",
    "--format=7zip",
    "--format=cpio",
    "--format=newc",
    "--format=xar",
    "--format=iso9660",
    "-J",
    "-j",
)
MUTANTS = 4
MUTANTS_OF_TARS = 40  # most of these are read without a process
MIB = 1 << 20
LIMITS = ArchiveLimits(sandbox_size=16 * MIB, members=2000)


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    sandbox = Sandbox(tmp_path / "place" / "sandbox")
    sandbox.create()
    (tmp_path / "place" / "secret").write_text("untouched")
    before, others = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, children()
    yield sandbox
    sandbox.remove()  # pytest cannot, where it is deep
    assert os.listdir(tmp_path) == ["place"]
    assert sorted(os.listdir(tmp_path / "place")) == ["secret"]
    assert (tmp_path / "place" / "secret").read_text() == "untouched"
    assert children() <= others
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def children() -> set[int]:
    return {int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def try_out(sandbox: Sandbox, archive: bytes) -> None:
    """Unpack it; an error must be the archive's fault."""
    said = None
    try:
        with Unpacker(sandbox, path=b"in", limits=LIMITS) as unpacker:
            for start in range(0, len(archive), 4096):
                unpacker.feed(archive[start : start + 4096])
            unpacker.finish()
    except PRouterError as error:
        said = error
    assert said is None or (said.status < 500 and "\n" not in said.detail), said


def mutated(archive: bytes, chance: random.Random) -> bytes:
    data = bytearray(archive)
    for _ in range(chance.choice((1, 1, 3, 20))):
        at = chance.randrange(len(data) + 1) if chance.random() < 0.5 else chance.randrange(min(len(data), 600) + 1)
        kind = chance.randrange(6)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            data[at:at] = chance.randbytes(chance.randrange(1, 600))
        elif kind == 2:
            data[at:at] = data[chance.randrange(len(data) + 1) :][: chance.randrange(1, 3000)]
        elif kind == 3:
            data[at : at + 8] = chance.choice((bytes(8), b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"99999999"))
        else:
            data[at : at + 1] = chance.randbytes(1)
    return bytes(data)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    source = Sandbox(tmp_path_factory.mktemp("fuzz") / "source")
    source.create()
    (source.root / "dir" / "sub").mkdir(parents=True)
    (source.root / "dir" / "text").write_bytes(b"text " * 3000)
    (source.root / "dir" / "sub" / ("long" * 40)).write_bytes(random.Random(1).randbytes(3000))
    (source.root / "dir" / "link").symlink_to("text")
    os.link(source.root / "dir" / "text", source.root / "dir" / "same")
    return source


@pytest.mark.parametrize("archive_format", OWN)
def test_damaged_archives_of_our_own_are_no_fault_of_ours(
    sandbox: Sandbox, source: Sandbox, archive_format: str
) -> None:
    archive, chance = b"".join(pack(source, archive_format=archive_format)), random.Random(archive_format)
    for _ in range(MUTANTS if archive_format == "zip" else MUTANTS_OF_TARS):
        try_out(sandbox, mutated(archive, chance))


@pytest.mark.parametrize("how", OTHERS)
def test_damaged_archives_of_others_are_no_fault_of_ours(sandbox: Sandbox, source: Sandbox, how: str) -> None:
    command = ["bsdtar", "-c", how, "-f", "-", "-C", str(source.root), "dir"]
    archive, chance = subprocess.run(command, check=True, capture_output=True).stdout, random.Random(how)
    for _ in range(MUTANTS):
        try_out(sandbox, mutated(archive, chance))


@pytest.mark.parametrize("name", SAMPLES)
def test_damaged_archives_of_odd_kinds_are_no_fault_of_ours(sandbox: Sandbox, name: str) -> None:
    try_out(sandbox, mutated((DATA / name).read_bytes(), random.Random(name)))


NAMES = st.one_of(
    st.binary(max_size=300),
    st.lists(
        st.sampled_from([b"..", b".", b"", b"a", b"A", b"link", b"/", b"\\", b"x" * 255, b"x" * 256]), max_size=9
    ).map(b"/".join),
    st.sampled_from(
        [
            b"d/" * 900 + b"f",
            b"d/" * 40_000 + b"f",
            b"\xff\xfe",
            b"nul\0inside",
            b"new\nline",
            b"C:\\x",
            b"dir/../../secret",
        ]
    ),
)
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.AREGTYPE])
MEMBERS = st.lists(st.tuples(NAMES, KINDS, NAMES), max_size=5)


def tar_of(members: list[tuple[bytes, bytes, bytes]]) -> bytes:
    archive = b""
    for name, kind, target in members:
        info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
        info.type, info.linkname = kind, target.decode("utf-8", "surrogateescape")
        info.size = 3 if kind in (tarfile.REGTYPE, tarfile.AREGTYPE) else 0
        archive += info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape") + (
            b"abc" + bytes(509) if info.size else b""
        )
    return archive + bytes(1024)


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=60, derandomize=True)
@given(members=MEMBERS)
@example(members=[(b"link", tarfile.SYMTYPE, b"."), (b"link/../../secret", tarfile.REGTYPE, b"")])
@example(members=[(b"link", tarfile.SYMTYPE, b".."), (b"link/../secret", tarfile.REGTYPE, b"")])
@example(members=[(b"h", tarfile.LNKTYPE, b"../../secret"), (b"h", tarfile.REGTYPE, b"")])
def test_no_name_in_a_tar_leads_outside(sandbox: Sandbox, members: list[tuple[bytes, bytes, bytes]]) -> None:
    try_out(sandbox, tar_of(members))


def zip_of(members: list[tuple[bytes, bytes, bytes]], made_by: int) -> bytes:
    """Names as they are, which zipfile would correct."""
    out, marks = io.BytesIO(), {}
    with zipfile.ZipFile(out, "w") as archive:
        for number, (name, kind, target) in enumerate(members):
            mark = b"%04d" % number + b"#" * (max(len(name), 4) - 4)
            info = zipfile.ZipInfo(mark[:1800].decode())
            info.create_system = made_by
            info.external_attr = (0o120777 if kind == tarfile.SYMTYPE else 0o100644) << 16
            archive.writestr(info, target[:1800])
            marks[mark[:1800]] = name[:1800].ljust(4, b"_")
    data = out.getvalue()
    for mark, name in marks.items():
        data = data.replace(mark, name)
    return data


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=25, derandomize=True)
@given(members=MEMBERS, made_by=st.sampled_from([0, 3, 10]))
@example(members=[(b"..\\secret", tarfile.REGTYPE, b"x")], made_by=0)
@example(members=[(b"link", tarfile.SYMTYPE, b".."), (b"link/secret", tarfile.REGTYPE, b"x")], made_by=3)
def test_no_name_in_a_zip_leads_outside(
    sandbox: Sandbox, members: list[tuple[bytes, bytes, bytes]], made_by: int
) -> None:
    try_out(sandbox, zip_of(members, made_by))


@pytest.mark.parametrize("field", ["members", "size", "offset"])
def test_a_zip_that_promises_too_much_costs_nothing(sandbox: Sandbox, field: str) -> None:
    record = {"members": (0xFFFF, 46, 0), "size": (1, 0xFFFFFFFE, 0), "offset": (1, 46, 0xFFFFFFFE)}[field]
    try_out(sandbox, b"PK\3\4" + bytes(100) + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, record[0], *record, 0))
