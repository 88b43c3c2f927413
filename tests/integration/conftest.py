"""Fixtures of several modules: job managers in the test's process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.job_manager import Managers, Observed


@pytest.fixture
def managers(tmp_path: Path) -> Iterator[Managers]:
    """Managers that follow one another on the same state."""
    managers = Managers(tmp_path)
    yield managers
    managers.close()


@pytest.fixture
def observed(managers: Managers) -> Observed:
    """One manager."""
    return managers.open()
