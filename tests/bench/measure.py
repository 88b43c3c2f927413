"""Measurement of every probe on every stack in turns, with the CPU time and memory of all processes."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from tests.bench.client import BadAnswer
from tests.bench.load import LoadFailed
from tests.bench.processes import busy_seconds, peak_reset, usage
from tests.bench.rows import Probe, Settings
from tests.bench.stack import Stack

__all__ = ["Measured", "ProcessUse", "measure"]

FAILURES = (OSError, BadAnswer, LoadFailed, subprocess.SubprocessError)
"""Errors of a measurement on a stack that does not work."""


@dataclass
class ProcessUse:
    """One process during one measurement: CPU seconds (also per 10,000 requests, where counted) and peak bytes."""

    cpu: float
    cpu_per_10k: float | None
    peak: int


@dataclass
class Measured:
    """All rounds of one probe on one stack.

    Attributes:
        rounds: the values of each round.
        processes: by role, of the last round.
        disturbed: the largest share of this machine's CPU that others used during a round, 0 to 1.
        failures: texts of the rounds that failed.
    """

    rounds: list[dict[str, float]] = field(default_factory=list)
    processes: dict[str, ProcessUse] = field(default_factory=dict)
    disturbed: float = 0.0
    failures: list[str] = field(default_factory=list)

    def median(self, value: str) -> float | None:
        """Return the median of a value over the rounds; None if no round has it."""
        found = [one[value] for one in self.rounds if value in one]
        return statistics.median(found) if found else None

    def to_json(self) -> dict[str, Any]:
        """Return the map for the result file."""
        return {
            "rounds": self.rounds,
            "processes": {role: vars(use) for role, use in self.processes.items()},
            "disturbed": round(self.disturbed, 3),
            "failures": self.failures,
        }


def measure(
    probes: Iterable[Probe], stacks: dict[str, Stack], settings: Settings, report: Callable[[str], None]
) -> dict[str, dict[str, Measured]]:
    """Run the probes; return the results by probe and stack.

    Each probe runs once on each stack before anything counts: a just-in-time compiler that is still cold would make a
    neighbour look two times dearer than it is. In each round the stacks take turns, and each round starts with another
    one, so that a slow spell of the machine does not fall on the same stack every time.
    """
    warm = replace(settings, seconds=min(settings.seconds, 2.0), bulk=min(settings.bulk, 128 << 20))
    results: dict[str, dict[str, Measured]] = {}
    for probe in probes:
        names = [name for name in probe.stacks if name in stacks]
        results[probe.key] = {name: Measured() for name in names}
        for name in () if probe.once else names:
            report(f"{probe.key}: {name}, warming up")
            with contextlib.suppress(*FAILURES):  # fails again, and is shown, when it counts
                probe.run(stacks[name], warm)
        for turn in range(1 if probe.once else settings.rounds):
            for place in range(len(names)):
                name = names[(place + turn) % len(names)]
                report(f"{probe.key}: {name}, round {turn + 1}")
                _measure_once(probe, stacks[name], settings, results[probe.key][name])
    return results


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _measure_once(probe: Probe, stack: Stack, settings: Settings, into: Measured) -> None:
    group = stack.processes()
    for process in group:
        peak_reset(process)
    before = {process: used for process in group if (used := usage(process))}
    started, busy, own = time.monotonic(), busy_seconds(), _own_seconds()
    try:
        values = dict(probe.run(stack, settings))
    except FAILURES as error:  # the next measurement goes on, the failure is shown
        into.failures.append(f"{type(error).__name__}: {error}")
        return
    elapsed, busy, own = time.monotonic() - started, busy_seconds() - busy, _own_seconds() - own
    after = {process: used for process in before if (used := usage(process))}
    requests = values.get("requests", 0.0)
    cpu = {process: after[process].cpu - before[process].cpu for process in after}
    into.processes = {
        process.role: ProcessUse(cpu[process], cpu[process] * 1e4 / requests if requests else None, after[process].peak)
        for process in after
    }
    if requests:
        ours = sum(seconds for process, seconds in cpu.items() if not process.role.startswith("job"))
        values["cpu_us"] = ours / requests * 1e6
    others = busy - own - sum(cpu.values())
    into.disturbed = max(into.disturbed, others / (elapsed * (os.cpu_count() or 1)))
    into.rounds.append(values)
