"""The guides that need no further application, followed word by word. ``make apps`` follows the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.blocks import Block, blocks
from tests.support.processes import Router, start_router
from tests.support.reader import Reader

GUIDES = Path(__file__).parents[2] / "docs" / "guides"


@pytest.fixture(scope="module")
def guided(short_dir: Path) -> Iterator[Router]:
    """A router for the guides alone: they choose among all agents."""
    router = start_router(short_dir / "guided", workers=1)
    yield router
    router.stop()


@pytest.fixture(scope="module")
def reader(guided: Router, short_dir: Path) -> Iterator[Reader]:
    """A reader with an agent."""
    directory = short_dir / "reader"
    directory.mkdir()
    reader = Reader(directory, guided.url, guided.agents)
    reader.follow(Block("terminal: first agent", "sh", "prouter agent --set identity.uid=first\n"))
    yield reader
    reader.leave()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("batch", ["squared 6\n36\n", "1\n4\n9\n", "0\n1\n4\n"]),
        ("machines", ["anywhere\n", "on a a100 in room b12\n", "here\n", "'gpu-7'"]),
    ],
)
def test_every_step_works(reader: Reader, guided: Router, name: str, shown: list[str]) -> None:
    reader.said = ""
    steps = blocks(GUIDES / f"{name}.md", "sh", "python")
    assert len(steps) >= 3
    for step in steps:
        reader.follow(step)
    for text in shown:
        assert text in reader.said
    assert guided.get("/jobs").json()["jobs"] == []


def test_every_block_of_a_guide_is_run_somewhere() -> None:
    here = {"batch", "machines", "slurm"}  # The last in tests/slurm/test_guide.py.
    for guide in GUIDES.glob("*.md"):
        for block in blocks(guide, "sh", "python"):
            assert (guide.stem in here) != block.mark.startswith("make apps: "), (guide.name, block.text)
