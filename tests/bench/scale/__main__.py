"""The benchmark of many agents and jobs: `python -m tests.bench.scale --help`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import click
from rich.console import Console

from tests.bench.client import BadAnswer
from tests.bench.load import LoadFailed
from tests.bench.report import save
from tests.bench.scale.figures import Results
from tests.bench.scale.fleet import most_agents
from tests.bench.scale.plots import write_plots
from tests.bench.scale.steps import Scale, ageing_step, agents_step, api_step, jobs_step
from tests.bench.stack import ROOT, StackFailed

_FAILURES = (OSError, BadAnswer, LoadFailed, StackFailed, subprocess.SubprocessError)
QUICK = Scale(
    levels=(200, 500),
    restarts=(200,),
    ageing=100,
    seconds=1.0,
    settling=1.0,
    jobs=2_000,
    job_agents=200,
    history=20_000,
)


@click.command()
@click.option("--levels", metavar="N,N…", help="Numbers of agents, instead of 1000, 2000, 5000, 10000 and 30000.")
@click.option("--steps", default="api,agents,ageing,jobs", show_default=True, metavar="NAMES", help="Only these steps.")
@click.option("--quick", is_flag=True, help="A few hundred agents: whether it works, in about a minute.")
@click.option("--plain", is_flag=True, help="Link agents without encryption.")
@click.option("--strict", is_flag=True, help="Exit with 1 when a figure is not what it must be.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=ROOT / "bench-results", help="Where the results are stored."
)
def main(levels: str | None, steps: str, quick: bool, plain: bool, strict: bool, out: Path) -> None:
    """Measure what many agents, many running jobs and a long history cost one router.

    Prints a table; stores it as JSON, and plots as SVG.
    """
    console = Console(width=None if sys.stdout.isatty() else 160)
    scale = replace(QUICK if quick else Scale(), encrypted=not plain)
    if levels:
        numbers = tuple(int(one) for one in levels.split(","))
        scale = replace(scale, levels=numbers, restarts=numbers)
    results = Results()
    scale = within_descriptors(scale, results)
    run(planned(scale, steps.split(","), results), results, Console(stderr=True))
    results.show(console)
    directory = out / "scale"
    directory.mkdir(parents=True, exist_ok=True)
    for path in (save(results.document(asdict(scale)), directory), *write_plots(results, directory)):
        console.print(f"stored as {path}", soft_wrap=True)
    if missed := results.missed():
        console.print(f"missed: {', '.join(missed)}")
        sys.exit(1 if strict else 0)


def within_descriptors(scale: Scale, results: Results) -> Scale:
    """Lower the numbers of agents that need more descriptors than a process may have here."""
    most = most_agents()
    if max(*scale.levels, scale.job_agents) <= most:
        return scale
    lower = most - most % 1000 if most >= 1000 else most
    results.notes.append(f"a process may have so few descriptors here that {lower:,} agents are the most (ulimit -Hn)")
    return replace(
        scale,
        levels=tuple(sorted({min(level, lower) for level in scale.levels})),
        restarts=tuple(sorted({min(level, lower) for level in scale.restarts})),
        job_agents=min(scale.job_agents, lower),
    )


def planned(scale: Scale, names: list[str], results: Results) -> list[tuple[str, Callable[[], None]]]:
    """The steps with these names, in order.

    Raises:
        BadParameter: there is no such step.
    """
    known: dict[str, list[tuple[str, Callable[[], None]]]] = {
        "api": [("API", partial(api_step, scale, results))],
        "agents": [(f"{n:,} agents", partial(agents_step, scale, n, results)) for n in scale.levels],
        "ageing": [("heartbeats", partial(ageing_step, scale, results))] if scale.ageing else [],
        "jobs": [(f"{scale.jobs:,} jobs", partial(jobs_step, scale, results))],
    }
    if unknown := set(names) - set(known):
        raise click.BadParameter(f"unknown: {', '.join(sorted(unknown))}", param_hint="--steps")
    return [step for name in names for step in known[name]]


def run(steps: list[tuple[str, Callable[[], None]]], results: Results, progress: Console) -> None:
    """Run the steps one after another; one that fails is noted, and the next goes on."""
    for title, step in steps:
        progress.print(title, style="dim")
        try:
            step()
        except _FAILURES as error:
            results.notes.append(f"{title}: {type(error).__name__}: {error}")
            progress.print(results.notes[-1], style="red", markup=False)


if __name__ == "__main__":
    main()
