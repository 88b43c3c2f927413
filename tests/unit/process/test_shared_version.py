"""A version that one process raises and others read from a file."""

from __future__ import annotations

import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prouter.process.shared_version import UNKNOWN, VersionFile, VersionReader

NEXT_WRITER = "import sys; from pathlib import Path; from prouter.process.shared_version import VersionFile as F; "


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow or be written, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def reader_of(path: Path) -> VersionReader:
    reader = VersionReader(path)
    reader.reopen()
    return reader


def test_readers_see_every_version_at_once(tmp_path: Path) -> None:
    writer = VersionFile(tmp_path / "version")
    reader = reader_of(tmp_path / "version")
    seen = [reader.current()]
    for _ in range(1000):
        assert writer.increment() == reader.current()
        seen.append(reader.current())
    assert seen == sorted(set(seen)), "a version came twice"
    assert UNKNOWN not in seen
    assert stat.S_IMODE((tmp_path / "version").stat().st_mode) == 0o600


def test_another_process_that_becomes_the_writer_raises_the_version(tmp_path: Path) -> None:
    path = tmp_path / "version"
    writer = VersionFile(path)
    reader = reader_of(path)
    before = reader.current()
    writer.close()
    done = subprocess.run(
        [sys.executable, "-c", NEXT_WRITER + "print(F(Path(sys.argv[1])).version)", path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert reader.current() == int(done.stdout) > before


def test_a_file_that_was_replaced_says_nothing_until_it_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "version"
    VersionFile(path).close()
    reader = reader_of(path)
    known = reader.current()
    path.unlink()
    assert reader.current() == UNKNOWN
    reader.reopen()
    assert reader.current() == UNKNOWN
    writer = VersionFile(path)
    assert reader.current() == UNKNOWN
    reader.reopen()
    assert reader.current() == writer.version
    assert reader.current() != known, "the versions of a new file are those of an earlier one"


@pytest.mark.parametrize("content", [b"", b"1234", b"123456789"])
def test_a_file_that_holds_no_version_is_written_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "version"
    path.write_bytes(content)
    assert reader_of(path).current() == UNKNOWN
    writer = VersionFile(path)
    assert reader_of(path).current() == writer.version != UNKNOWN


def test_a_version_that_cannot_be_written_is_unknown_to_all(tmp_path: Path) -> None:
    path = tmp_path / "version"
    writer = VersionFile(path)
    reader = reader_of(path)
    with full_disk():
        assert writer.increment() == UNKNOWN
    assert (reader.current(), path.exists()) == (UNKNOWN, False)
    assert writer.increment() == UNKNOWN, "readers that open the file again would not see it"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"precious")
    (tmp_path / "version").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic links"):
        VersionFile(tmp_path / "version")
    assert (tmp_path / "other").read_bytes() == b"precious"
