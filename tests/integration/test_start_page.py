"""docs/start.md followed word by word: a router, an agent, jobs, then a second agent that was invited."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.blocks import blocks
from tests.support.ports import free_port
from tests.support.programs import needed
from tests.support.reader import Reader

PAGE = Path(__file__).parents[2] / "docs" / "start.md"


@pytest.fixture
def reader(work_dir: Path) -> Iterator[Reader]:
    """A reader whose router has ports of its own, which it keeps over restarts."""
    control, server = free_port(), free_port()
    reader = Reader(
        work_dir,
        f"http://127.0.0.1:{control}",
        f"127.0.0.1:{server}",
        PROUTER_CONTROL__PORT=str(control),
        PROUTER_CONTROL__WORKERS="1",
        PROUTER_CONTROL__DRAIN_DELAY="0",
        PROUTER_SERVER__PORT=str(server),
    )
    yield reader
    reader.leave()


@needed("curl")
def test_every_step_works(reader: Reader) -> None:
    steps = blocks(PAGE, "sh")
    assert len(steps) >= 8
    for step in steps:
        reader.follow(step)
    assert "hello from " in reader.said
    assert "<h1>Hello from a job</h1>" in reader.said
    assert len(re.findall(r"^[0-9a-f]{32} .* up ", reader.said, re.MULTILINE)) == 2
    assert reader.said.endswith("here\n")
