"""The plots of a run, as SVG files."""

from __future__ import annotations

from pathlib import Path

from tests.bench.scale.figures import Results
from tests.support.plot import Series, draw

__all__ = ["write_plots"]

_PLOTS: dict[str, tuple[str, dict[str, tuple[str, str, str]]]] = {
    "scale-agents.svg": (
        "Agents of one router, linked over CURVE",
        {
            "idle": ("CPU of an idle broker, share of a core", "%", "agents"),
            "memory": ("Memory of the processes", "MiB", "agents"),
            "ageing": ("Memory of the broker per agent, after so many heartbeats", "KiB", "heartbeats"),
        },
    ),
    "scale-requests.svg": (
        "Small requests to a job beside many agents",
        {"requests": ("Time of a request", "ms", "agents")},
    ),
    "scale-restart.svg": (
        "Agents that are back after a restart of the router",
        {"restart": ("Linked agents, since the router's start", "%", "s")},
    ),
}
"""By file name, the title and the diagrams: title, unit and unit across, by plot."""


def write_plots(results: Results, directory: Path) -> list[Path]:
    """Write the plots for which there are points; their paths."""
    paths = []
    for name, (title, diagrams) in _PLOTS.items():
        series = [
            Series(heading, unit, {line.name: sorted(line.points) for line in results.curves[plot]}, across)
            for plot, (heading, unit, across) in diagrams.items()
            if plot in results.curves
        ]
        if series:
            path = directory / name
            path.write_text(draw(title, series), encoding="utf-8")
            paths.append(path)
    return paths
