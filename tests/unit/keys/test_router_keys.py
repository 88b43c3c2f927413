"""The router's own keys and their rotation."""

from __future__ import annotations

from pathlib import Path

import pytest

from prouter.config import ConfigError
from prouter.keys.router_keys import begin_rotation, finish_rotation, keys_directory, load_router_keys


def test_a_rotation_has_two_keys_until_it_is_finished(tmp_path: Path) -> None:
    before = load_router_keys(tmp_path)
    assert before.public == (before.current.public,)
    during = begin_rotation(tmp_path, 1000.0)
    assert load_router_keys(tmp_path) == during
    assert during.current == before.current
    assert during.next is not None
    assert during.public == (before.current.public, during.next.public)
    assert during.switch_at == 1000.0
    after = finish_rotation(tmp_path)
    assert after.public == (during.next.public,)
    assert load_router_keys(tmp_path) == after
    names = {path.name for path in keys_directory(tmp_path).iterdir()}
    assert names == {"router.key", "router.key_secret"}


def test_a_second_rotation_waits_for_the_first(tmp_path: Path) -> None:
    begin_rotation(tmp_path, 1000.0)
    with pytest.raises(ConfigError, match="a rotation is under way"):
        begin_rotation(tmp_path, 2000.0)


def test_a_crash_in_the_middle_leaves_the_new_pair(tmp_path: Path) -> None:
    during = begin_rotation(tmp_path, 1000.0)
    directory = keys_directory(tmp_path)
    (directory / "next.key_secret").replace(directory / "router.key_secret")
    assert load_router_keys(tmp_path).current == during.next


@pytest.mark.parametrize("text", ["", "{}", '{"switch_at": "soon"}', "[1]"])
def test_a_damaged_time_of_the_switch_means_now(tmp_path: Path, text: str) -> None:
    begin_rotation(tmp_path, 1000.0)
    (keys_directory(tmp_path) / "rotation.json").write_text(text)
    assert load_router_keys(tmp_path).switch_at == 0.0
