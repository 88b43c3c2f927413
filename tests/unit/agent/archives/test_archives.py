"""Members that would leave the sandbox are refused; links, modes and existing files are treated with care."""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path

import pytest

from prouter.agent.archives import Unpacker
from prouter.agent.sandbox import trees
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.agent.sandbox.uploads import Upload
from prouter.errors import Conflict, Forbidden, InvalidRequest, NotFound, PRouterError
from tests.support.archives import make_tar, make_zip, special, unpack


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
