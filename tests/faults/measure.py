"""Resources of a router's and an agent's processes at one moment: memory, descriptors, streams, sandboxes, database."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from tests.faults.stand import Stand, sandboxes
from tests.support.processes import processes_with

__all__ = ["Sample", "sample"]


@dataclass(frozen=True)
class Sample:
    """One measurement.

    Attributes:
        rss: bytes of resident memory, by kind of process; that of the largest where there are several.
        descriptors: open ones, likewise.
        figures: of ``/metrics`` that should come back to where they were: streams and greenlets
            of all workers, calls, waits.
        sandboxes: how many there are.
        database: bytes.
    """

    rss: dict[str, int]
    descriptors: dict[str, int]
    figures: dict[str, float]
    sandboxes: int
    database: int


def sample(it: Stand) -> Sample:
    """Measure all processes of the stand."""
    kinds = {"supervisor": [it.router.pid], "broker": [it.router.child("broker")], "agent": [it.agent.pid]}
    parent = it.router.child("gunicorn")
    kinds["gunicorn"] = [parent]
    kinds["worker"] = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    kinds["keeper"] = [
        pid for pid in processes_with(str(it.agent.directory / "state" / "keeper")) if "keeper" in _command(pid)
    ]
    database = it.router.directory / "state"
    return Sample(
        {kind: max(map(_resident, pids), default=0) for kind, pids in kinds.items()},
        {kind: max((_descriptors(pid) for pid in pids), default=0) for kind, pids in kinds.items()},
        _figures(it),
        len(sandboxes(it.agent)),
        sum(path.stat().st_size for path in database.glob("router.sqlite*")),
    )


def _figures(it: Stand) -> dict[str, float]:
    wanted = "waits|creations|agent_calls|dials|store_backlog|links_up"
    text = it.router.get("/metrics").text
    workers = re.findall(r"^prouter_worker_(streams|greenlets) (\S+)$", text, re.MULTILINE)
    brokers = re.findall(rf"^prouter_broker_({wanted}) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in workers + brokers}


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _descriptors(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0
