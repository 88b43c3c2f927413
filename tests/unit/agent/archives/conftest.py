"""Fixtures of the tests of archives: sandboxes, and a tree with a bit of everything."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from prouter.agent.sandbox.sandbox import Sandbox


@pytest.fixture
def places(tmp_path: Path) -> Callable[[], Sandbox]:
    """Makes fresh sandboxes."""
    count = iter(range(1_000_000))

    def make() -> Sandbox:
        sandbox = Sandbox(tmp_path / f"sandbox{next(count)}")
        sandbox.create()
        return sandbox

    return make


@pytest.fixture
def sandbox(places: Callable[[], Sandbox]) -> Sandbox:
    return places()


@pytest.fixture
def sample(places: Callable[[], Sandbox]) -> Sandbox:
    """A tree with a bit of everything."""
    sandbox = places()
    root = sandbox.root
    (root / "empty dir").mkdir()
    (root / "dir" / "sub").mkdir(parents=True)
    (root / "dir" / "script.sh").write_text("#!/bin/sh\n")
    (root / "dir" / "script.sh").chmod(0o755)
    (root / "dir" / "sub" / ("n" * 200)).write_bytes(os.urandom(5000))
    (root / "dir" / "sub" / "größe ☃").write_bytes(b"text " * 100_000)
    (root / "link").symlink_to("dir/script.sh")
    (root / "empty").touch()
    (root / "dir").chmod(0o750)
    for path in [*root.rglob("*")]:
        os.utime(path, ns=(1_700_000_000_123_456_700,) * 2, follow_symlinks=False)
    return sandbox
