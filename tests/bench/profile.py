"""Where each process spends its time under load: `python -m tests.bench.profile --help`.

py-spy samples every process of a router with an agent and a job at once, while clients send small GETs (or WebSocket
messages, or downloads).
"""

from __future__ import annotations

import collections
import concurrent.futures
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from tests.bench import load
from tests.bench.processes import Process
from tests.bench.stack import ROOT, Prouter, Stack

__all__ = ["functions", "record"]

WORKLOADS: dict[str, Callable[[Stack, float], object]] = {
    "get": lambda stack, seconds: load.get(stack, "/", 64, seconds),
    "get1": lambda stack, seconds: load.get(stack, "/", 1, seconds),
    "ws": lambda stack, seconds: load.ws(stack, 32, 1, 64, seconds),
    "download": lambda stack, seconds: downloads(stack, seconds),
    "info": lambda stack, seconds: load.get(stack, "!/info", 16, seconds),
}


def downloads(stack: Stack, seconds: float) -> None:
    """Let one client download over and over."""
    with load.fast_downloads(stack, 1):
        threading.Event().wait(seconds)


def record(process: Process, seconds: float, into: Path) -> str:
    """Sample one process; return py-spy's message if it failed, else an empty text.

    Args:
        into: file for the folded stacks, one ``frame;frame;… count`` a line, which flamegraph.pl and speedscope read.
    """
    command = ["py-spy", "record", "--pid", str(process.pid), "--duration", str(round(seconds))]
    options = ["--rate", "200", "--format", "raw", "--function", "--nonblocking", "--output", str(into)]
    program = Path(sys.executable).with_name(command[0])
    done = subprocess.run([str(program), *command[1:], *options], capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""


def functions(folded: str) -> tuple[int, collections.Counter[str], collections.Counter[str]]:
    """Return the number of samples: in all, by function itself, and by function with its callees."""
    total = 0
    own: collections.Counter[str] = collections.Counter()
    below: collections.Counter[str] = collections.Counter()
    for line in folded.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        total += int(count)
        own[frames[-1]] += int(count)
        for frame in set(frames):
            below[frame] += int(count)
    return total, own, below


def show(process: Process, folded: str, top: int, console: Console) -> None:
    """Print one process's functions."""
    total, own, below = functions(folded)
    table = Table(title=f"{process.role} (pid {process.pid}), {total} samples")
    for heading in ("self %", "function", "self and below %", "function "):
        table.add_column(heading, justify="right" if "%" in heading else "left", overflow="fold")
    ranked = zip(own.most_common(top), below.most_common(top), strict=False)
    for (mine, mine_count), (whole, whole_count) in ranked:
        table.add_row(f"{mine_count / total:.1%}", mine, f"{whole_count / total:.1%}", whole)
    console.print(table)


@click.command()
@click.option("--workload", type=click.Choice(sorted(WORKLOADS)), default="get", show_default=True)
@click.option("--workers", default=1, show_default=True)
@click.option("--seconds", default=8.0, show_default=True)
@click.option("--top", default=25, show_default=True, help="Functions to show per process.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=ROOT / "bench-results" / "profile",
    help="Directory of the stacks.",
)
def main(workload: str, workers: int, seconds: float, top: int, output: Path) -> None:
    """Profile broker, workers and agent under load; print what each spends its time in."""
    console = Console(width=None if sys.stdout.isatty() else 170)
    output.mkdir(parents=True, exist_ok=True)
    stack = Prouter(workers)
    try:
        stack.launch()
        run = WORKLOADS[workload]
        run(stack, 1.0)
        targets = [one for one in stack.processes() if one.role.split()[0] in ("broker", "worker", "agent")]
        with concurrent.futures.ThreadPoolExecutor(len(targets) + 1) as pool:
            loaded = pool.submit(run, stack, seconds + 3)
            time.sleep(1.0)
            files = {one: output / f"{workload}-{one.role.replace(' ', '-')}.folded" for one in targets}
            recorded = {one: pool.submit(record, one, seconds, path) for one, path in files.items()}
            failures = {one: text for one, future in recorded.items() if (text := future.result())}
            console.print(f"{workload}: {loaded.result()}")
    finally:
        stack.close()
    for one, path in files.items():
        if one in failures:
            console.print(f"[red]{one.role}: {failures[one]}[/]")
        else:
            show(one, path.read_text(), top, console)
    console.print(f"folded stacks in {output}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
