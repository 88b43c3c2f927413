"""Removal of trees from network file systems, whose clients cache names."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from prouter.agent.sandbox import trees

UNLINK = os.unlink


def _remove(path: Path) -> None:
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        trees.remove(parent, os.fsencode(path.name))
    finally:
        os.close(parent)


def _cached_until(moment: float) -> Any:
    """An unlink(2) that takes files for absent until then, as a client does that has cached their absence."""

    def unlink(name: bytes, *, dir_fd: int | None = None) -> None:
        if time.monotonic() < moment:
            raise FileNotFoundError(2, "No such file or directory", name)
        UNLINK(name, dir_fd=dir_fd)

    return unlink


def test_a_file_that_is_listed_and_said_to_be_absent_is_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "box").mkdir()
    (tmp_path / "box" / "file").touch()
    monkeypatch.setattr(os, "unlink", _cached_until(time.monotonic() + 1))
    _remove(tmp_path / "box")
    assert not (tmp_path / "box").exists()


def test_a_directory_that_is_never_empty_is_told_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "box").mkdir()
    (tmp_path / "box" / "file").touch()
    monkeypatch.setattr(os, "unlink", _cached_until(float("inf")))
    monkeypatch.setattr(trees, "_REMOVE_SECONDS", 0.5)
    with pytest.raises(trees.NotRemoved, match="still being created"):
        _remove(tmp_path / "box")
