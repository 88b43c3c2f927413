"""Results of a run, as a table to read and a file to compare."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.bench.measure import Measured
from tests.bench.rows import Bound, Probe, Row, Settings
from tests.bench.stack import ROOT

__all__ = ["compare", "document", "failed_musts", "save", "show"]

Results = dict[str, dict[str, Measured]]
DISTURBED = 0.15
"""Share of the machine that other processes use, above which a value is marked."""


def number(value: float) -> str:
    """Format a number with about three significant figures."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def values_of(row: Row, measured: dict[str, Measured]) -> dict[str, float]:
    """Return the row's median for each stack."""
    return {name: median for name, one in measured.items() if (median := one.median(row.value)) is not None}


def verdict(bound: Bound | None, values: dict[str, float], measured: dict[str, Measured]) -> str:
    """Format a bound and whether it holds; with a ~ if other processes used the machine during a measurement."""
    if bound is None:
        return ""
    holds = bound.holds(values)
    if holds is None:
        return f"  {bound.text()}"
    rests_on = {bound.stack, bound.of, bound.above}
    doubt = "~" if any(one.disturbed > DISTURBED for name, one in measured.items() if name in rests_on) else ""
    return f"{doubt}[green]✓[/] {bound.text()}" if holds else f"{doubt}[red]✗ {bound.text()}[/]"


def show(
    probes: Sequence[Probe], results: Results, stacks: dict[str, str], console: Console, *, all_processes: bool = False
) -> None:
    """Print the rows, then what each process used.

    Args:
        stacks: titles of the measured stacks by name, in order.
        all_processes: of every probe, not only those busy where requests were counted.
    """
    table = Table(
        title="Medians. ~: others used the machine meanwhile; take neither the value nor the verdict for granted"
    )
    table.add_column("what")
    table.add_column("unit")
    for title in stacks.values():
        table.add_column(title, justify="right")
    table.add_column("original (documented)", justify="right", style="dim")
    table.add_column("must")
    table.add_column("strive for")
    for probe in probes:
        for row in probe.rows:
            measured = results[probe.key]
            values = values_of(row, measured)
            cells = [cell(name, values, measured) for name in stacks]
            bounds = verdict(row.must, values, measured), verdict(row.strive, values, measured)
            table.add_row(row.title, row.unit, *cells, row.documented, *bounds)
    console.print(table)
    show_processes(probes, results, stacks, console, all_processes=all_processes)
    for key, measured in results.items():
        for name, one in measured.items():
            for text in one.failures:
                console.print(f"[red]{key}, {name}: {escape(text)}[/]")


def cell(name: str, values: dict[str, float], measured: dict[str, Measured]) -> str:
    """Format one stack's value in one row."""
    if name not in values:
        return "[red]failed[/]" if name in measured and measured[name].failures else ""
    return ("~" if measured[name].disturbed > DISTURBED else "") + number(values[name])


def show_processes(
    probes: Sequence[Probe], results: Results, stacks: dict[str, str], console: Console, *, all_processes: bool
) -> None:
    """Print CPU and memory of the processes of the project's own stacks."""
    table = Table(title="CPU seconds per 10,000 requests (or in all), peak MiB")
    for heading in ("what", "stack", "process"):
        table.add_column(heading)
    for heading in ("per 10,000", "in all", "peak"):
        table.add_column(heading, justify="right")
    for probe in probes:
        for name in stacks:
            one = results[probe.key].get(name)
            if one is None or not name.startswith("prouter"):
                continue
            for role, use in one.processes.items():
                if not all_processes and not (use.cpu and use.cpu_per_10k):
                    continue
                per = "" if use.cpu_per_10k is None else f"{use.cpu_per_10k:.2f}"
                table.add_row(probe.key, name, role, per, f"{use.cpu:.2f}", f"{use.peak / 2**20:.0f}")
    if table.row_count:
        console.print(table)


def failed_musts(probes: Sequence[Probe], results: Results) -> list[str]:
    """Return the keys of the rows that miss their bound."""
    return [
        row.key
        for probe in probes
        for row in probe.rows
        if row.must is not None and row.must.holds(values_of(row, results[probe.key])) is False
    ]


def document(probes: Sequence[Probe], results: Results, settings: Settings) -> dict[str, Any]:
    """Return everything about a run, for JSON."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    rows = {}
    for probe in probes:
        for row in probe.rows:
            values = values_of(row, results[probe.key])
            rows[row.key] = {
                "title": row.title,
                "unit": row.unit,
                "higher": row.higher,
                "values": values,
                "must": row.must.text() if row.must else None,
                "holds": row.must.holds(values) if row.must else None,
                "strive": row.strive.text() if row.strive else None,
                "reached": row.strive.holds(values) if row.strive else None,
                "documented": row.documented,
            }
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit,
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
        "settings": vars(settings),
        "rows": rows,
        "measured": {key: {name: one.to_json() for name, one in measured.items()} for key, measured in results.items()},
    }


def save(result: dict[str, Any], directory: Path) -> Path:
    """Write a run's document; return the file's path."""
    directory.mkdir(exist_ok=True)
    path = directory / f"{result['at'].replace(':', '')}-{result['commit'] or 'uncommitted'}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def compare(old: dict[str, Any], new: dict[str, Any], console: Console) -> None:
    """Print how each row changed from one run to another."""
    table = Table(title=f"{old['commit']} {old['at']} against {new['commit']} {new['at']}")
    for heading in ("what", "unit", "stack"):
        table.add_column(heading)
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    for key, row in new["rows"].items():
        before = old["rows"].get(key, {}).get("values", {})
        for name, value in row["values"].items():
            if not before.get(name):
                continue
            change = value / before[name] - 1
            better = (change > 0) == row["higher"]
            colour = "" if abs(change) < 0.05 else "[green]" if better else "[red]"
            table.add_row(
                row["title"], row["unit"], name, number(before[name]), number(value), f"{colour}{change:+.1%}"
            )
    console.print(table)
