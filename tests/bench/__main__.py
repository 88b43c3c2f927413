"""The benchmark command: `python -m tests.bench --help`."""

from __future__ import annotations

import fnmatch
import json
import sys
from pathlib import Path

import click
from rich.console import Console

from tests.bench import agent_rows, pool_rows, proxy_rows, queue_rows, router_rows
from tests.bench.measure import measure
from tests.bench.report import compare, document, failed_musts, save, show
from tests.bench.rows import QUICK, Probe, Settings
from tests.bench.stack import NAMES, OTHER_LINKS, ROOT, running

PROBES = (
    *proxy_rows.MEMORY,
    *proxy_rows.PROBES,
    *router_rows.PROBES,
    *agent_rows.PROBES,
    *pool_rows.PROBES,
    *queue_rows.PROBES,
)
RESULTS = ROOT / "bench-results"


@click.command()
@click.option(
    "--rows", "pattern", default="*", metavar="PATTERN", help="Only rows whose key matches, as in 'get*,ws*'."
)
@click.option(
    "--stacks",
    default=",".join(NAMES),
    metavar="NAMES",
    show_default=True,
    help=f"Only these stacks; there are {', '.join(OTHER_LINKS)}, too.",
)
@click.option(
    "--quick", is_flag=True, help="One short round, smaller transfers: a first impression in some two minutes."
)
@click.option("--rounds", type=int, help="Rounds of each measurement; the table shows medians.")
@click.option("--seconds", type=float, help="Seconds of each measurement.")
@click.option("--strict", is_flag=True, help="Exit with 1 when a row misses what it must reach.")
@click.option(
    "--all-processes", is_flag=True, help="Show what every process used in every probe, not just the busy ones."
)
@click.option(
    "--compare", "files", nargs=2, type=click.Path(exists=True, path_type=Path), help="Compare two results instead."
)
def main(
    pattern: str,
    stacks: str,
    quick: bool,
    rounds: int | None,
    seconds: float | None,
    strict: bool,
    all_processes: bool,
    files: tuple[Path, Path] | None,
) -> None:
    """Measure the router and its neighbours side by side; print a table and store the result in bench-results/."""
    console = Console(width=None if sys.stdout.isatty() else 190)
    progress = Console(stderr=True)
    if files:
        compare(json.loads(files[0].read_text()), json.loads(files[1].read_text()), console)
        return
    settings = adjusted(QUICK if quick else Settings(), rounds, seconds)
    probes = [probe for probe in PROBES if matches(probe, pattern)]
    if not probes:
        raise click.BadParameter(f"no row matches {pattern!r}; there are {', '.join(row_keys())}", param_hint="--rows")
    unknown = set(stacks.split(",")) - set(NAMES) - set(OTHER_LINKS)
    if unknown:
        raise click.BadParameter(f"unknown: {', '.join(sorted(unknown))}", param_hint="--stacks")
    with running(tuple(stacks.split(",")), progress.print) as started:
        results = measure(probes, started, settings, lambda text: progress.print(text, style="dim"))
        titles = {name: stack.title for name, stack in started.items()}
    show(probes, results, titles, console, all_processes=all_processes)
    console.print(f"stored as {save(document(probes, results, settings), RESULTS)}", soft_wrap=True)
    if missed := failed_musts(probes, results):
        console.print(f"missed: {', '.join(missed)}")
        sys.exit(1 if strict else 0)


def adjusted(settings: Settings, rounds: int | None, seconds: float | None) -> Settings:
    """Return the settings with the values of the command line."""
    changed = {name: value for name, value in (("rounds", rounds), ("seconds", seconds)) if value is not None}
    return Settings(**{**vars(settings), **changed})


def row_keys() -> list[str]:
    """Return the keys of all rows."""
    return [row.key for probe in PROBES for row in probe.rows]


def matches(probe: Probe, pattern: str) -> bool:
    """Whether the pattern names a probe or one of its rows."""
    keys = [probe.key, *(row.key for row in probe.rows)]
    return any(fnmatch.fnmatch(key, one) for key in keys for one in pattern.split(","))


if __name__ == "__main__":
    main()
