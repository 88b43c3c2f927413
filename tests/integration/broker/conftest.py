"""Fixtures of the tests of the broker's process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.broker_stage import Stage


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A directory for a broker; whoever is started on it is stopped after the test, and the broker's log printed."""
    directory = Path(tempfile.mkdtemp(prefix="prb-"))
    stage = Stage(directory)
    try:
        yield stage
    finally:
        stage.clear()
        print((directory / "broker.log").read_text())
        shutil.rmtree(directory, ignore_errors=True)
