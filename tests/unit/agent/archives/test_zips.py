"""Zips of other programs are unpacked."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Iterator
from typing import cast

import pytest

from prouter.agent.archives import ArchiveLimits
from prouter.agent.archives.members import Member, Tree
from prouter.agent.archives.zip_writer import ZipWriter
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.errors import Forbidden, InvalidRequest, TooLarge
from tests.support.archives import Unseekable, make_zip, unpack


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
