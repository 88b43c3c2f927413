"""Downloads of archives are complete or refused, and take little memory however deep the tree and long its names."""

from __future__ import annotations

import io
import os
import resource
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prouter.agent.archives import FORMATS, Packer, pack
from prouter.agent.sandbox import trees
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.errors import Forbidden, TooLarge
from tests.support.unprivileged import as_ordinary_user, open_folder


def in_sandbox(work: Callable[[Sandbox], None]) -> None:
    """Run `work` as an ordinary user with a sandbox of its own."""
    with open_folder() as folder:

        def inside() -> None:
            sandbox = Sandbox(folder / "sandbox")
            sandbox.create()
            (sandbox.root / "a").write_text("ok")
            try:
                work(sandbox)
            finally:
                sandbox.remove()

        as_ordinary_user(inside)


BLOCKERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a file": ("z", lambda root: (root / "z").touch(0)),
    "a directory": ("out", lambda root: closed_directory(root / "out", 0)),
    "a directory that may only be listed": ("out/result", lambda root: closed_directory(root / "out", 0o600)),
    "a directory that may only be searched": ("out", lambda root: closed_directory(root / "out", 0o300)),
}


def closed_directory(path: Path, mode: int) -> None:
    path.mkdir()
    (path / "result").write_text("42")
    path.chmod(mode)


@pytest.mark.parametrize("archive_format", FORMATS)
@pytest.mark.parametrize("blocker", BLOCKERS)
def test_what_may_not_be_read_is_told_before_the_start_and_can_be_left_out(blocker: str, archive_format: str) -> None:
    name, block = BLOCKERS[blocker]

    def work(sandbox: Sandbox) -> None:
        block(sandbox.root)
        with pytest.raises(Forbidden, match=f"'{name}'.*exclude"):
            Packer(sandbox, archive_format=archive_format).size()
        for include, exclude in (((), ("z", "out")), (("a",), ())):
            packer = Packer(sandbox, include=include, exclude=exclude, archive_format=archive_format)
            packer.size()
            archive = b"".join(packer)
            assert b"vanished" not in archive
            if archive_format == "tar":
                with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
                    assert tar.getnames() == ["a"]

    in_sandbox(work)


def test_all_that_may_not_be_read_is_counted_and_the_first_are_named() -> None:
    def work(sandbox: Sandbox) -> None:
        for number in range(12):
            (sandbox.root / f"n{number:02}").touch(0)
        with pytest.raises(Forbidden, match=r"'n00', 'n01', 'n02', 'n03', 'n04' and 7 more"):
            Packer(sandbox).size()

    in_sandbox(work)


@pytest.mark.parametrize("archive_format", FORMATS)
def test_what_may_not_be_read_any_more_breaks_the_download(archive_format: str) -> None:
    def work(sandbox: Sandbox) -> None:
        for name in ("b", "c"):
            (sandbox.root / name).write_bytes(os.urandom(300_000))
        packer = Packer(sandbox, archive_format=archive_format)
        packer.size()
        chunks = iter(packer)
        next(chunks)
        (sandbox.root / "c").chmod(0)
        with pytest.raises(Forbidden, match="'c'"):
            b"".join(chunks)

    in_sandbox(work)


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    sandbox = Sandbox(tmp_path / "sandbox")
    sandbox.create()
    yield sandbox
    sandbox.remove()  # pytest cannot, where it is deep


def grow_deep(root: Path, levels: int) -> None:
    """Directories with names of 255 bytes, one in the other."""
    here = os.open(root, os.O_PATH)
    for _ in range(levels):
        os.mkdir("d" * 255, dir_fd=here)
        below = os.open("d" * 255, os.O_PATH, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


@pytest.mark.parametrize("levels", [300, 1500])
def test_a_tree_that_is_too_deep_for_archives_is_refused_and_costs_no_memory(sandbox: Sandbox, levels: int) -> None:
    grow_deep(sandbox.root, levels)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for archive_format in FORMATS:
        with pytest.raises(TooLarge, match="exclude"):
            Packer(sandbox, archive_format=archive_format).size()
        with pytest.raises(TooLarge):
            b"".join(pack(sandbox, archive_format=archive_format))
        packer = Packer(sandbox, archive_format=archive_format, exclude=["d*"])
        assert packer.size() == (1024 if archive_format == "tar" else None)
    sandbox.size_bytes()
    sandbox.remove()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    assert not sandbox.root.exists()


def test_a_deep_tree_that_fits_is_packed_whole(sandbox: Sandbox) -> None:
    grow_deep(sandbox.root, 255)
    for archive_format in FORMATS:
        packer = Packer(sandbox, archive_format=archive_format)
        assert packer.size() is None  # 8 MiB of names are not kept for it
        archive = b"".join(packer)
        if archive_format == "tar":
            with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
                assert len(tar.getnames()) == 255


def test_names_of_some_mib_take_the_length_from_a_tar_and_nothing_else(sandbox: Sandbox) -> None:
    grow_deep(sandbox.root, 100)
    packer = Packer(sandbox)
    size = packer.size()
    assert size == len(b"".join(packer))
    for number in range(300):
        os.mkdir(sandbox.root / f"{number}")
        (sandbox.root / f"{number}" / ("x" * 250)).symlink_to("y" * 4000)
        (sandbox.root / f"{number}" / ("z" * 250)).symlink_to("y" * 4000)
    assert Packer(sandbox).size() is not None
    for number in range(300):
        for name in "abcdefgh":
            (sandbox.root / f"{number}" / (name * 250)).symlink_to("y" * 4000)
    packer = Packer(sandbox)
    assert packer.size() is None
    with tarfile.open(fileobj=io.BytesIO(b"".join(packer))) as tar:
        assert len(tar.getnames()) == 100 + 300 * 11


def test_a_walk_without_paths_finds_as_much_as_one_with_them(sandbox: Sandbox) -> None:
    grow_deep(sandbox.root, 70)
    (sandbox.root / "b").mkdir()
    (sandbox.root / "b" / "c").touch()
    with_paths = [(found.path, found.name) for found in trees.walk(sandbox)]
    without = [found.name for found in trees.walk(sandbox, paths=False)]
    assert [name for _, name in with_paths] == without
    assert with_paths[:2] == [(b"b", b"b"), (b"b/c", b"c")]
    assert len(with_paths[-1][0]) == 70 * 256 - 1
