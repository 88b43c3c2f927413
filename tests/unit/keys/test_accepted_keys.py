"""The directory of public keys that may link."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from prouter.config import ConfigError
from prouter.keys.accepted_keys import AcceptedKeys
from prouter.keys.files import make_pair, store_pair


def test_files_count_from_when_they_come_until_they_go(tmp_path: Path) -> None:
    one, other = make_pair(), make_pair()
    accepted = AcceptedKeys(tmp_path)
    assert not accepted.keys
    store_pair(tmp_path, "gpu-1", one)
    assert accepted.refresh()
    assert accepted.keys == {one.public: ""}
    assert not accepted.refresh()
    store_pair(tmp_path, "gpu-2", other, uid="gpu-2")
    assert accepted.refresh()
    assert accepted.keys == {one.public: "", other.public: "gpu-2"}
    (tmp_path / "gpu-1.key").unlink()
    assert accepted.refresh()
    assert accepted.keys == {other.public: "gpu-2"}
    store_pair(tmp_path, "gpu-2", one)
    assert accepted.refresh()
    assert accepted.keys == {one.public: ""}


def test_a_file_without_a_key_lets_nobody_in_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "gpu.key").write_text("not a key")
    (tmp_path / "README").write_text("not looked at")
    with caplog.at_level(logging.WARNING, "prouter.keys"):
        accepted = AcceptedKeys(tmp_path)
        accepted.refresh()
    assert not accepted.keys
    assert [record.getMessage().split()[0] for record in caplog.records] == ["event=key_ignored"]


def test_a_directory_that_is_not_there_is_an_error_at_the_start_and_shuts_everybody_out_later(tmp_path: Path) -> None:
    directory = tmp_path / "agents"
    with pytest.raises(ConfigError, match=r"server\.accept_keys: .*agents cannot be read: No such file"):
        AcceptedKeys(directory)
    directory.mkdir()
    store_pair(directory, "gpu", make_pair())
    accepted = AcceptedKeys(directory)
    directory.rename(tmp_path / "moved")
    assert accepted.refresh()
    assert not accepted.keys
    (tmp_path / "moved").rename(directory)
    assert accepted.refresh()
    assert accepted.keys


def test_a_directory_that_does_not_change_is_not_read_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = make_pair()
    store_pair(tmp_path, "gpu", pair)
    os.utime(tmp_path, (1000, 1000))
    accepted = AcceptedKeys(tmp_path)
    accepted.refresh()
    scans: list[Path] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scans.append(path) or scandir(path))  # type: ignore[func-returns-value]
    for _ in range(40):
        assert not accepted.refresh()
    assert 1 <= len(scans) <= 5
    (tmp_path / "gpu.key").write_text("written over in place")
    os.utime(tmp_path, (1000, 1000))
    assert any(accepted.refresh() for _ in range(10))
    assert not accepted.keys
