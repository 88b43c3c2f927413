"""Archives that libarchive reads for the agent, in a process that may crash, lie or starve without harm."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import lzma
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from prouter.agent import archive_reader
from prouter.agent.archives import ArchiveLimits, Unpacked, Unpacker, pack
from prouter.agent.archives import reader as reader_module
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.errors import Forbidden, InvalidRequest, NotSupported, PRouterError, TooLarge
from tests.support.programs import needed

pytestmark = needed("bsdtar", "tar")  # bsdtar brings libarchive along

DATA = Path(__file__).parents[3] / "data" / "archives"
EXPECTED: dict[str, dict[str, str] | None] = json.loads((DATA / "expected.json").read_text())


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    sandbox = Sandbox(tmp_path / "place" / "sandbox")
    sandbox.create()
    before = children()
    yield sandbox
    assert children() <= before
    assert os.listdir(tmp_path / "place") == ["sandbox"]
    sandbox.remove()  # pytest cannot, where it is deep


def children() -> set[int]:
    """Processes of ours, ended ones that nobody has waited for among them."""
    return {int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def unpack(sandbox: Sandbox, archive: bytes, step: int = 5000, **options: object) -> Unpacked:
    with Unpacker(sandbox, **options) as unpacker:  # type: ignore[arg-type]
        for start in range(0, len(archive), step):
            unpacker.feed(archive[start : start + step])
        return unpacker.finish()


def found(root: Path) -> dict[str, str]:
    """Regular files and their SHA-1; bytes of names that are no UTF-8 as ``\\xff``."""
    top, files = os.fsencode(root), {}
    for folder, _, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                with open(path, "rb") as file:
                    digest = hashlib.sha1(file.read()).hexdigest()
                files[os.path.relpath(path, top).decode(errors="backslashreplace")] = digest
    return files


@pytest.mark.parametrize("name", EXPECTED)
def test_archives_of_all_kinds_come_out_as_other_tools_unpack_them(sandbox: Sandbox, name: str) -> None:
    expected, archive = EXPECTED[name], (DATA / name).read_bytes()
    if expected is None:
        with pytest.raises(InvalidRequest):
            unpack(sandbox, archive)
        return
    unpack(sandbox, archive)
    assert found(sandbox.root) == expected


FORMATS = ["zip", "7zip", "cpio", "newc", "odc", "bin", "xar", "iso9660", "gnutar", "ustar", "pax"]
FILTERS = ["-z", "-j", "-J", "-Z", "--lzma", "--lz4", "--lzip", "--zstd", "--uuencode"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "dir" / "größe").mkdir(parents=True)
    (source / "dir" / "größe" / "a").write_bytes(b"text " * 50_000)
    (source / "dir" / "b").write_bytes(os.urandom(3000))
    (source / "dir" / "b").chmod(0o751)
    (source / "empty").touch()
    (source / "dir" / "link").symlink_to("b")
    for path in source.rglob("*"):
        os.utime(path, (1_700_000_000, 1_700_000_000), follow_symlinks=False)
    return source


@pytest.mark.parametrize("how", [f"--format={form}" for form in FORMATS] + FILTERS)
def test_what_bsdtar_packs_comes_back_the_same(sandbox: Sandbox, source: Path, how: str) -> None:
    command = ["bsdtar", "-c", how, "-f", "-", "-C", str(source), "dir", "empty"]
    archive = subprocess.run(command, check=True, capture_output=True, env={**os.environ, "LC_ALL": "C.UTF-8"}).stdout
    unpack(sandbox, archive, 777 if len(archive) < 100_000 else 65536)
    assert found(sandbox.root) == found(source)
    assert os.readlink(sandbox.root / "dir" / "link") == "b"
    info = (sandbox.root / "dir" / "b").stat()
    mode = 0o555 if "iso" in how else 0o751  # made read-only there
    assert (info.st_mode & 0o777, info.st_mtime) == (mode, 1_700_000_000)


@pytest.mark.parametrize("form", ["newc", "odc", "ustar", "pax"])
def test_hard_links_have_the_same_contents_under_all_their_names(sandbox: Sandbox, source: Path, form: str) -> None:
    for name in ("b2", "b3"):
        os.link(source / "dir" / "b", source / "dir" / name)
    archive = subprocess.run(
        ["bsdtar", "-c", f"--format={form}", "-f", "-", "-C", source, "dir"], check=True, capture_output=True
    ).stdout
    unpack(sandbox, archive)
    files = found(sandbox.root)
    assert files["dir/b"] == files["dir/b2"] == files["dir/b3"] == found(source)["dir/b"]


def zip_of(*members: tuple[str, bytes], made_by: int = 3, extra: bytes = b"") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.filename, info.create_system, info.extra = name, made_by, extra  # zipfile itself corrects names
            archive.writestr(info, data)
    return out.getvalue()


@pytest.mark.parametrize("made_by", [0, 10])
def test_backslashes_in_zips_of_dos_and_windows_are_separators(sandbox: Sandbox, made_by: int) -> None:
    done = unpack(sandbox, zip_of(("dir\\", b""), ("dir\\f.txt", b"x"), ("sub\\deep\\g", b"y"), made_by=made_by))
    assert (done.files, done.directories) == (2, 1)
    assert set(found(sandbox.root)) == {"dir/f.txt", "sub/deep/g"}
    for name in ("..\\evil", "dir\\..\\..\\evil", "\\tmp\\evil"):
        with pytest.raises(Forbidden, match="evil"):
            unpack(sandbox, zip_of((name, b"x"), made_by=made_by))


def test_backslashes_in_zips_of_unix_are_part_of_names(sandbox: Sandbox) -> None:
    archive = zip_of(("dir\\f.txt", b"x"), ("dir/g\\h", b"y"), ("\\", b"z"), made_by=3)
    unpack(sandbox, b"before" + archive)
    assert set(found(sandbox.root)) == {"dir\\f.txt", "dir/g\\h", "\\"}


def test_a_zip_s_unicode_path_field_gives_the_name_if_it_fits(sandbox: Sandbox) -> None:
    raw, name = b"gr\x94\xe1e.txt", "größe.txt".encode()  # as code page 437 has it
    for about, expected in ((raw, name), (b"another name", raw)):
        field = struct.pack("<HHBI", 0x7075, 5 + len(name), 1, zlib.crc32(about)) + name
        archive = zip_of(("X" * len(raw), b"1"), made_by=0, extra=field).replace(b"X" * len(raw), raw)
        unpack(sandbox, archive)
        assert os.fsencode(os.listdir(sandbox.root)[0]) == expected
        os.unlink(os.path.join(os.fsencode(sandbox.root), expected))


def test_zips_are_found_between_other_data(sandbox: Sandbox) -> None:
    archive = zip_of(("a", b"PK\5\6" * 100), ("b", b"2"))
    for before, after in ((b"MZ, a program that unpacks itself" * 100, b""), (b"", os.urandom(300_000)), (b"x", b"y")):
        assert unpack(sandbox, before + archive + after, 65536).files == 2


# Old and odd tars


def header(name: str, kind: bytes = b"0", size: int = 0, target: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.linkname = size, target
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("kind", [b"0", b"\0"])
@pytest.mark.parametrize("size", [0, 700])
def test_a_file_whose_name_ends_in_a_slash_is_a_directory_without_contents(
    sandbox: Sandbox, kind: bytes, size: int
) -> None:
    archive = header("d/", kind, size) + header("d/f", size=1) + b"x".ljust(512, b"\0") + bytes(1024)
    done = unpack(sandbox, archive)
    assert (done.files, done.directories) == (1, 1)
    assert (sandbox.root / "d" / "f").read_bytes() == b"x"


@pytest.mark.parametrize("compress", [bytes, lzma.compress])
def test_a_tar_may_end_without_its_mark_but_not_within_a_member(sandbox: Sandbox, compress: object) -> None:
    assert callable(compress)
    archive = header("a", size=3) + b"one".ljust(512, b"\0") + header("b", size=3) + b"two".ljust(512, b"\0")
    assert unpack(sandbox, compress(archive)).files == 2
    for cut in (100, 512, 600, 1024 + 100, 1536, 1700):
        with pytest.raises(InvalidRequest):
            unpack(sandbox, compress(archive[:cut]))
    assert unpack(sandbox, compress(archive[:1024])).files == 1


@pytest.mark.parametrize("step", [1, 512, 1000, 1 << 20])
def test_a_tar_is_read_on_by_libarchive_from_its_first_unusual_member(
    sandbox: Sandbox, tmp_path: Path, step: int
) -> None:
    source = tmp_path / "from"
    (source / ("long" * 50)).mkdir(parents=True)
    for number in range(3):
        (source / f"a{number}").write_bytes(os.urandom(1000))
        (source / f"z{number}").write_bytes(os.urandom(1000))
        os.link(source / f"a{number}", source / f"y{number}")
    with (source / ("long" * 50) / ("sparse" * 20)).open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    for form in ("gnu", "posix"):
        command = ["tar", "-C", str(source), "-S", f"--format={form}", "--sort=name", "-cf", "-", "."]
        archive = subprocess.run(command, capture_output=True, check=True).stdout
        unpack(sandbox, archive, step)
        assert found(sandbox.root) == found(source)
        assert (sandbox.root / "y0").stat().st_nlink == 2


def test_archives_that_name_files_of_the_machine_show_none_of_them(sandbox: Sandbox, tmp_path: Path) -> None:
    """mtree files do; libarchive would open them."""
    (tmp_path / "secret").write_text("secret")
    text = f"#mtree\n./a type=file contents={tmp_path}/secret\n./b type=file link={tmp_path}/secret\n"
    with pytest.raises(InvalidRequest, match="kind that is not read"):
        unpack(sandbox, text.encode())
    assert found(sandbox.root) == {}


@pytest.mark.parametrize("size", [65_537, 900_000])
def test_names_that_are_too_long_are_refused(sandbox: Sandbox, size: int) -> None:
    info = tarfile.TarInfo("d/" * (size // 2) + "ff")
    with pytest.raises(InvalidRequest, match="too long"):
        unpack(sandbox, info.tobuf(tarfile.PAX_FORMAT) + bytes(1024))


# Limits


def test_a_name_of_thousands_of_directories_costs_work_in_proportion(sandbox: Sandbox) -> None:
    """It took the square of their number, and no limit of members counted them."""
    archive = tarfile.TarInfo("d/" * 2000 + "f").tobuf(tarfile.PAX_FORMAT) + bytes(1024)
    with pytest.raises(TooLarge, match="1000 directories"):
        unpack(sandbox, archive, limits=ArchiveLimits(sandbox_size=1 << 30, members=1000))
    assert unpack(sandbox, archive, limits=ArchiveLimits(sandbox_size=1 << 30)).files == 1


def test_an_archive_that_has_to_be_stored_counts_for_the_sandbox_s_size(sandbox: Sandbox) -> None:
    archive = zip_of(*((f"{number}", os.urandom(4096)) for number in range(50)))
    with pytest.raises(TooLarge, match="stored"):
        unpack(sandbox, archive, limits=ArchiveLimits(sandbox_size=150_000))
    assert found(sandbox.root) == {}
    with pytest.raises(TooLarge, match="unpacking stopped"):
        unpack(sandbox, archive, limits=ArchiveLimits(sandbox_size=300_000))
    assert unpack(sandbox, archive, limits=ArchiveLimits(sandbox_size=700_000)).files == 50


@pytest.mark.parametrize("how", ["--format=zip", "--format=7zip", "-j", "-J"])
def test_bombs_are_stopped(sandbox: Sandbox, tmp_path: Path, how: str) -> None:
    with (tmp_path / "zeros").open("wb") as file:
        file.truncate(24 << 20)
    command = ["bsdtar", "-c", "--no-read-sparse", how, "-f", "-", "-C", str(tmp_path), "zeros"]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    with pytest.raises(TooLarge, match="200"):
        unpack(sandbox, archive, limits=ArchiveLimits(ratio_from=8 << 20))
    assert found(sandbox.root) == {}


# A reader that is missing, crashes or lies


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that runs in the reader's place."""
    path = tmp_path / "reader.py"
    monkeypatch.setattr(reader_module, "_SCRIPT", str(path))
    return path


def test_without_libarchive_ordinary_tars_work_and_other_archives_get_advice(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not reader_module.library_missing()
    copy = tmp_path / "prouter" / "agent" / "archive_reader"
    shutil.copytree(Path(archive_reader.__file__).parent, copy)
    for package in (copy.parent, copy.parent.parent):
        (package / "__init__.py").touch()
    library = copy / "libarchive.py"
    library.write_text(library.read_text().replace("libarchive.so", "libnothing.so"))
    monkeypatch.setattr(reader_module, "_SCRIPT", str(copy / "__main__.py"))
    assert reader_module.library_missing()
    with pytest.raises(NotSupported, match="libarchive13") as caught:
        unpack(sandbox, zip_of(("a", b"1")))
    assert caught.value.status == 501
    for form in ("tar", "tar.gz", "tar.zst"):
        (sandbox.root / "a").write_text("text")
        assert unpack(sandbox, b"".join(pack(sandbox, archive_format=form))).files == 1


LIES = {
    "crash": "os.kill(os.getpid(), 11)",
    "silence": "pass",
    "noise": "os.write(1, os.urandom(100_000))",
    "huge": "os.write(1, struct.pack('<cI', b'D', 1 << 31))",
    "data of no file": "tell(b'D', bytes(8) + b'x')",
    "end of no file": "tell(b'.', bytes(8))",
    "short entry": "tell(b'E', b'f')",
    "file in file": "entry(b'f', b'a'); entry(b'f', b'b')",
    "back in file": "entry(b'f', b'a'); tell(b'D', struct.pack('<q', 5) + b'x'); tell(b'D', bytes(8) + b'x')",
    "negative length": "entry(b'f', b'a'); tell(b'.', struct.pack('<q', -9))",
    "unknown kind": "tell(b'?', b'')",
    "unknown entry": "entry(b'?', b'a')",
    "half a message": "os.write(1, struct.pack('<cI', b'E', 50) + b'f')",
    "not a word": "tell(b'Z', b''); tell(b'!', b'')",
}
LIAR = """
import os, struct
def tell(kind, payload): os.write(1, struct.pack("<cI", kind, len(payload)) + payload)
def entry(kind, name): tell(b"E", struct.pack("<cIqBI", kind, 0o644, 0, 0, len(name)) + name)
"""


@pytest.mark.parametrize("case", LIES)
def test_a_reader_that_crashes_or_lies_makes_the_archive_refused(sandbox: Sandbox, script: Path, case: str) -> None:
    script.write_text(LIAR + LIES[case])
    with contextlib.suppress(InvalidRequest):
        unpack(sandbox, b"BZh" + bytes(200_000))
        assert case == "not a word"
    assert found(sandbox.root) == {}


@pytest.mark.parametrize("member", ["b'../evil'", "b'/tmp/evil'", "b'a/../../evil'", "b'evil\\0'"])
def test_a_reader_cannot_lead_the_agent_outside(sandbox: Sandbox, script: Path, member: str) -> None:
    for kind in "fdsh":
        script.write_text(LIAR + f"entry(b'{kind}', {member})\ntell(b'Z', b'')")
        with pytest.raises(PRouterError, match="evil"):
            unpack(sandbox, b"BZh" + bytes(2000))
    assert found(sandbox.root) == {}


def test_a_reader_that_works_without_telling_anything_is_ended(sandbox: Sandbox, script: Path) -> None:
    root = Path(archive_reader.__file__).parents[3]
    script.write_text(
        f"import sys; sys.path.append({str(root)!r})\n"
        "from prouter.agent.archive_reader import reader\n"
        "reader._CPU_SECONDS = 1\nreader._Output()\nwhile True: pass"
    )
    with pytest.raises(InvalidRequest, match="showed nothing"):
        unpack(sandbox, b"BZh" + bytes(2000))


def test_the_reader_can_open_start_and_grow_nothing() -> None:
    root = Path(archive_reader.__file__).parents[3]
    program = (
        f"import os, sys; sys.path.append({str(root)!r})\n"
        "from prouter.agent.archive_reader.reader import _confine\n"
        "import socket, subprocess\n_confine()\n"
        "def refused(what):\n"
        "    try: what()\n"
        "    except (OSError, MemoryError): return True\n"
        "print([refused(w) for w in (lambda: open('/etc/passwd'), socket.socket, lambda: subprocess.run(['true']),"
        " lambda: os.dup(0), lambda: bytearray(1 << 30))])"
    )
    run = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str([True] * 5)


def test_work_in_slices_ends_in_the_same_and_can_be_given_up(sandbox: Sandbox, source: Path) -> None:
    archive = subprocess.run(["bsdtar", "-cj", "-f", "-", "-C", source, "dir"], check=True, capture_output=True).stdout
    unpacker = Unpacker(sandbox, may_start_reader=False)
    assert unpacker.feed(archive, 0)
    assert unpacker.waits_for_reader
    assert unpacker.work(0)
    unpacker.start_reader()
    while unpacker.work(0.001):
        pass
    more = unpacker.complete(0)
    while more:
        more = unpacker.work(0.001)
    assert unpacker.finish().files == 2
    given_up = Unpacker(sandbox)
    given_up.feed(archive[:1000])
    given_up.abort()
    given_up.abort()
