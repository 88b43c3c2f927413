"""Helpers for tests of runners: an agent's end that keeps what a runner reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prouter.errors import InvalidRequest
from prouter.runners import Exit, Queued, Reports, Spawned

__all__ = ["ExitReports", "distribution"]


class ExitReports(Reports):
    """Reports of a runner that has no queue, on the agent's machine.

    Args:
        exited: called with each end.
    """

    def __init__(self, exited: Callable[[Exit], object]) -> None:
        self._exited = exited

    def queued(self, queued: Queued) -> None:
        raise AssertionError("this runner has no queue")

    def running(self, spawned: Spawned) -> None:
        raise AssertionError("this runner has no queue")

    def exited(self, end: Exit) -> None:
        self._exited(end)

    def port(self, job: str, port: int) -> None:
        raise InvalidRequest("the job reports to the agent itself")


def distribution(directory: Path, **runners: str) -> Path:
    """Make a distribution in a directory for ``sys.path``, with these entry points of runners; return the directory."""
    info = directory / f"runners_{directory.name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: runners-{directory.name}\nVersion: 1.0\n")
    lines = ["[prouter.runners]", *(f"{name} = {value}" for name, value in runners.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return directory
