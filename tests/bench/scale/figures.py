"""Figures of a run with what they must be and what is strived for; as a table, and as JSON."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.report import DISTURBED, number
from tests.bench.stack import ROOT

__all__ = ["Curve", "Figure", "Results"]


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        key: short name in the JSON document.
        must: bound that no change may break; None without one.
        goal: bound that is strived for.
        higher: whether more is better.
        disturbed: share of the machine that other processes used meanwhile, 0 to 1.
    """

    key: str
    title: str
    unit: str
    value: float
    must: float | None = None
    goal: float | None = None
    higher: bool = False
    disturbed: float = 0.0

    def holds(self, bound: float | None) -> bool | None:
        """Whether a bound holds; None if there is none."""
        if bound is None:
            return None
        return self.value >= bound if self.higher else self.value <= bound

    def verdict(self, bound: float | None) -> str:
        """The bound and whether it holds, for the table."""
        if bound is None:
            return ""
        text = f"{'≥' if self.higher else '≤'} {number(bound)}"
        doubt = "~" if self.disturbed > DISTURBED else ""
        return f"{doubt}[green]✓[/] {text}" if self.holds(bound) else f"{doubt}[red]✗ {text}[/]"


@dataclass
class Curve:
    """A line of a plot: points of two numbers."""

    name: str
    points: list[tuple[float, float]]


@dataclass
class Results:
    """All that a run has measured.

    Attributes:
        curves: lines of the plots, by plot.
        notes: what the reader of the table has to know.
    """

    figures: list[Figure] = field(default_factory=list)
    curves: dict[str, list[Curve]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def point(self, plot: str, line: str, x: float, y: float) -> None:
        """Add a point to a line of a plot."""
        lines = self.curves.setdefault(plot, [])
        found = next((one for one in lines if one.name == line), None)
        if found is None:
            found = Curve(line, [])
            lines.append(found)
        found.points.append((x, y))

    def show(self, console: Console) -> None:
        """Print the table."""
        table = Table(title="~: others used the machine meanwhile; take neither the value nor the verdict for granted")
        for heading in ("what", "unit"):
            table.add_column(heading)
        table.add_column("measured", justify="right")
        table.add_column("must")
        table.add_column("goal")
        for one in self.figures:
            value = ("~" if one.disturbed > DISTURBED else "") + number(one.value)
            table.add_row(one.title, one.unit, value, one.verdict(one.must), one.verdict(one.goal))
        console.print(table)
        for note in self.notes:
            console.print(note)

    def missed(self) -> list[str]:
        """Keys of the figures that are not what they must be."""
        return [one.key for one in self.figures if one.holds(one.must) is False]

    def document(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Everything, for JSON."""
        head = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(head, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
        return {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "commit": commit,
            "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
            "settings": settings,
            "figures": {
                one.key: {
                    **{name: value for name, value in asdict(one).items() if name != "key"},
                    "holds": one.holds(one.must),
                    "reached": one.holds(one.goal),
                }
                for one in self.figures
            },
            "curves": {plot: {one.name: one.points for one in lines} for plot, lines in self.curves.items()},
            "notes": self.notes,
        }
