"""Fixtures of the fault tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.load import Load
from tests.faults.stand import Stand
from tests.support.processes import link_settings, start_agent, start_router


@pytest.fixture
def load() -> Iterator[Load]:
    """Clients, stopped after the test."""
    with Load() as clients:
        yield clients


@pytest.fixture
def stand(launch: Callable[..., Any], work_dir: Path) -> Callable[..., Stand]:
    """``stand(router={…}, agent={…}, transport="tcp")``: a router of its own, an agent, and running jobs."""

    def make(
        router: dict[str, Any] | None = None, agent: dict[str, Any] | None = None, transport: str = "tcp"
    ) -> Stand:
        started = launch(
            start_router, **{"control__drain_timeout": 1, "server__curve": transport == "curve", **(router or {})}
        )
        link = link_settings(started, transport)
        found = Stand(started, launch(start_agent, started, **{**link, **(agent or {})}), work_dir / "marks")
        found.serve()
        return found

    return make
