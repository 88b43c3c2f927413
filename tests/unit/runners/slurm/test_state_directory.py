"""What jobs leave on their nodes."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

import pytest

from prouter.runners.slurm.node.state_directory import remove_left, state_directory


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def left(temporary: Path, name: str) -> Path:
    """A directory of a job that was killed."""
    place = temporary / name
    place.mkdir()
    for lock in ("node.lock", "keeper.lock"):
        (place / lock).touch()
    return place


def test_a_job_deletes_its_own(temporary: Path) -> None:
    with state_directory("0" * 32) as made:
        (Path(made) / "journal").touch()
    assert list(temporary.iterdir()) == []


def test_what_killed_jobs_have_left_is_deleted(temporary: Path) -> None:
    left(temporary, "prouter-01234567-abc_1")
    with state_directory("0" * 32) as made:
        (Path(made) / "keeper.lock").touch()
        remove_left(str(temporary))
        assert list(temporary.iterdir()) == [Path(made)]


def test_what_is_in_use_or_another_programs_stays(temporary: Path) -> None:
    kept = left(temporary, "prouter-01234567-kept")
    being_made = temporary / "prouter-01234567-made"
    being_made.mkdir()
    other = left(temporary, "prouter-0-0a479094")
    link = temporary / "prouter-01234567-link"
    link.symlink_to(other)
    lock = os.open(kept / "keeper.lock", os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove_left(str(temporary))
    finally:
        os.close(lock)
    assert {path.name for path in temporary.iterdir()} == {kept.name, being_made.name, other.name, link.name}
    assert len(list(other.iterdir())) == 2


def test_what_a_job_has_left_that_was_killed_before_its_keeper_began_is_deleted(temporary: Path) -> None:
    place = temporary / "prouter-01234567-abc_1"
    place.mkdir()
    (place / "node.lock").touch()
    with state_directory("0" * 32) as made:
        remove_left(str(temporary))
        assert list(temporary.iterdir()) == [Path(made)]
