"""What is packed comes out the same; what a hostile job packs leads nowhere."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prouter.client.core.errors import RouterError
from prouter.client.core.packing import file_body, scan, stays_inside, tar_body
from prouter.client.core.unpacking import PartFile, Unpacker


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "deep" / ("n" * 120) / ("m" * 130)).mkdir(parents=True)
    (root / "deep" / ("n" * 120) / ("m" * 130) / "x").write_bytes(b"x" * 1000)
    (root / "empty").mkdir()
    (root / "ünï code").write_text("ü")
    os.close(os.open(os.fsencode(root) + b"/\xff\xfe", os.O_CREAT | os.O_WRONLY))
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    os.utime(root / "run.sh", ns=(1, 1_700_000_000_123_456_789))
    os.utime(root / "ünï code", ns=(1, -1_500_000_000))
    (root / "link").symlink_to("run.sh")
    (root / "deep" / "up").symlink_to("../run.sh")
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "dangling").symlink_to("/no/such/file")
    os.mkfifo(root / "fifo")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "y").write_text("y")
    (tmp_path / "outside" / "loop").symlink_to(root)
    return root


def packed(root: Path, **masks: tuple[str, ...]) -> bytes:
    members, _ = scan(str(root), **masks)
    seen: list[tuple[int, int | None]] = []
    body = tar_body(members, lambda done, total: seen.append((done, total)))
    data = b""
    for chunk in body.chunks():
        data += chunk
        body.on_sent(len(chunk))
    assert body.size == len(data)
    assert seen[-1] == (len(data), len(data))
    return data


def told(root: Path) -> dict[str, object]:
    """What is in a directory, for comparisons."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        what: object = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        times = None if path.is_dir() or path.is_symlink() else round(status.st_mtime, 5)
        found[str(path.relative_to(root))] = (stat.S_IFMT(status.st_mode), what, times)
    return found


def test_a_directory_is_packed_as_tar_understands_it(tree: Path, tmp_path: Path) -> None:
    members, skipped = scan(str(tree))
    assert sorted(skipped) == ["dangling", "fifo", "out/loop"]
    with tarfile.open(fileobj=io.BytesIO(packed(tree))) as archive:
        names = archive.getnames()
        run = archive.getmember("run.sh")
        assert run.mode == 0o755
        assert run.mtime == pytest.approx(1_700_000_000.1234567)
        assert archive.getmember("ünï code").mtime == -1.5
        assert archive.getmember("deep/up").linkname == "../run.sh"
        assert archive.getmember("out").isdir()
        assert archive.extractfile("out/y").read() == b"y"  # type: ignore[union-attr]
    assert names == [one.name for one in members]
    assert "\udcff\udcfe" in names


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(1, 3000))
def test_a_directory_comes_out_as_it_went_in(tree: Path, tmp_path: Path, size: int) -> None:
    data = packed(tree, exclude=("out",))
    target = tmp_path / f"back{size}"
    unpacker = Unpacker(str(target))
    for at in range(0, len(data), size):
        unpacker.feed(data[at : at + size])
    unpacker.finish()
    expected = {name: value for name, value in told(tree).items() if name not in ("out", "dangling", "fifo")}
    assert told(target) == expected


def test_masks_choose_what_is_packed(tree: Path) -> None:
    names = {one.name for one in scan(str(tree), include=("deep/*/x", "run.*"))[0]}
    assert "run.sh" in names
    assert any(name.endswith("/x") for name in names)
    assert {"deep"} < names
    assert "empty" not in names
    assert not [one.name for one in scan(str(tree), exclude=("deep", "*"))[0]]


def test_a_file_that_shrinks_while_it_is_sent_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    body = file_body(str(file), 6, None)
    with pytest.raises(OSError, match="became shorter"):
        list(body.chunks())
    assert b"".join(file_body(str(file), 3, None).chunks()) == b"123"


def archive(*members: tuple[str, bytes, str]) -> bytes:
    """A tar of members: name, type, and contents or target."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as made:
        for name, kind, text in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0o7777
            if kind == tarfile.REGTYPE:
                info.size = len(text)
            else:
                info.linkname = text
            made.addfile(info, io.BytesIO(text.encode()))
    return target.getvalue()


def unpack(root: Path, data: bytes) -> Unpacker:
    unpacker = Unpacker(str(root))
    try:
        unpacker.feed(data)
        unpacker.finish()
    finally:
        unpacker.abort()
    return unpacker


FILE, LINK, HARD, DIR = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE


@pytest.mark.parametrize(
    "members",
    [
        [("../evil", FILE, "x")],
        [("/tmp/evil", FILE, "x")],
        [("a/../../evil", FILE, "x")],
        [("l", LINK, ".."), ("l/evil", FILE, "x")],
        [("d", DIR, ""), ("d/l", LINK, ".."), ("d/l2", LINK, "l/.."), ("d/l2/evil", FILE, "x")],
        [("l", LINK, "d"), ("d", DIR, ""), ("l/evil", FILE, "x")],
        [("../d", DIR, "")],
        [("l", LINK, "x"), ("l", DIR, "")],
        [("..", LINK, "x")],
        [("a\0/../../evil" + "n" * 100, FILE, "x")],
    ],
)
def test_nothing_is_written_outside_or_through_a_link(tmp_path: Path, members: list[tuple[str, bytes, str]]) -> None:
    root = tmp_path / "in" / "root"
    with suppress(RouterError, OSError):
        unpack(root, archive(*members))
    assert [path for path in tmp_path.rglob("*") if path not in (root, root.parent) and root not in path.parents] == []
    assert [path for path in root.rglob("*") if path.is_symlink() and path.resolve() == root.parent] == []


@pytest.mark.parametrize("target", ["/etc/passwd", "..", "../x", "a/../../x", "d/..", ""])
def test_links_that_lead_outside_are_left_out(tmp_path: Path, target: str) -> None:
    unpacker = unpack(tmp_path / "root", archive(("link", LINK, target), ("file", FILE, "x")))
    assert unpacker.skipped == ["link"]
    assert os.listdir(tmp_path / "root") == ["file"]


def test_links_inside_stay_and_devices_and_hard_links_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / "root"
    members = [("d/l", LINK, "../f"), ("f", FILE, "x"), ("p", tarfile.FIFOTYPE, ""), ("c", tarfile.CHRTYPE, ""),
               ("h", HARD, "f"), ("d", DIR, "")]  # fmt: skip
    unpacker = unpack(root, archive(*members))
    assert unpacker.skipped == ["p", "c", "h"]
    assert (root / "d" / "l").read_text() == "x"
    mask = os.umask(0o022)
    os.umask(mask)
    assert stat.S_IMODE((root / "f").stat().st_mode) == 0o777 & ~mask
    assert len(unpacker.complete) == 2


def test_a_link_where_a_file_goes_is_replaced_and_what_it_leads_to_untouched(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "mine").write_text("mine")
    (root / "f").symlink_to(tmp_path / "mine")
    unpack(root, archive(("f", FILE, "theirs")))
    assert (tmp_path / "mine").read_text() == "mine"
    assert (root / "f").read_text() == "theirs"
    (root / "d").symlink_to(tmp_path)
    with pytest.raises(NotADirectoryError, match="link"):
        unpack(root, archive(("d/mine", FILE, "theirs")))
    assert (tmp_path / "mine").read_text() == "mine"


@given(cut=st.integers(0, 4000))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_an_archive_that_is_cut_leaves_no_half_file(tmp_path: Path, cut: int) -> None:
    root = tmp_path / f"cut{cut}"
    data = archive(("a", FILE, "a" * 700), ("b" * 200, FILE, "b" * 700))
    data = data[: min(cut, 2 * 512 + 1024 + 2 * 512 + 1024)]
    with pytest.raises(RouterError, match="ended before"):
        unpack(root, data)
    assert {path.read_text() for path in root.iterdir()} <= {"a" * 700, "b" * 700}


@given(st.binary(max_size=2000))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_bytes_that_are_no_tar_are_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises((RouterError, OSError)):
        unpack(tmp_path / "root", data.ljust(512, b"x") if any(data[:512]) else b"")


@pytest.mark.parametrize(
    "records", [{"mtime": "1e300"}, {"mtime": "nan"}, {"mtime": "x"}, {"size": "-1"}, {"size": "1e3"}]
)
def test_numbers_that_are_none_are_refused(tmp_path: Path, records: dict[str, str]) -> None:
    info = tarfile.TarInfo("f")
    info.pax_headers = records
    with pytest.raises(RouterError):
        unpack(tmp_path / "root", info.tobuf(tarfile.PAX_FORMAT) + bytes(1024))


def test_comments_of_the_router_are_passed_over(tmp_path: Path) -> None:
    from prouter.agent.archives.tar_writer import last_filler

    unpacker = unpack(tmp_path / "root", b"".join(last_filler(4096)) + archive(("f", FILE, "x")))
    assert len(unpacker.complete) == 2


@pytest.mark.parametrize(
    ("name", "target", "inside"),
    [
        ("a", "b", True), ("a/b", "../c", True), ("a", "../c", False), ("a/b", "../../c", False),
        ("a", "b/../c", False),
        ("a", "/c", False), ("a", "", False), ("a/b/c", "./../x/y", True), ("a", ".", True),
    ],
)  # fmt: skip
def test_links_that_stay_inside(name: str, target: str, inside: bool) -> None:
    assert stays_inside(name, target) is inside


def test_a_part_file_gets_its_name_at_the_end_only(tmp_path: Path) -> None:
    part = PartFile(str(tmp_path / "f"))
    part.open()
    part.write(b"old")
    part.empty()
    part.write(b"new")
    assert not (tmp_path / "f").exists()
    part.finish()
    assert (tmp_path / "f").read_bytes() == b"new"
    part = PartFile(str(tmp_path / "g"))
    part.open()
    part.abort()
    assert os.listdir(tmp_path) == ["f"]
