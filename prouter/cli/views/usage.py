"""What running jobs use: CPU between two looks, and memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prouter.cli.remote.durations import age, size
from prouter.cli.remote.names import short
from prouter.cli.remote.output import Column
from prouter.client import JobInfo, Router

__all__ = ["JOB_COLUMNS", "Row", "Usage"]


@dataclass(frozen=True)
class Row:
    """A job, and what share of one CPU it used since the last look (in percent; None before the second one)."""

    info: JobInfo
    cpu: float | None

    @property
    def raw(self) -> Mapping[str, Any]:
        """What JSON shows."""
        return {**self.info.raw, "cpu_percent": None if self.cpu is None else round(self.cpu, 1)}


JOB_COLUMNS: list[Column[Row]] = [
    Column("ID", lambda row: short(row.info.uid)),
    Column("NAME", lambda row: row.info.name or "-"),
    Column("STATE", lambda row: row.info.state, lambda row: "green" if row.info.state == "RUNNING" else "yellow"),
    Column("AGENT", lambda row: str(row.info.agent.get("name") or row.info.agent.get("uid") or "-")),
    Column("OWNER", lambda row: row.info.owner or "-"),
    Column("CPU", lambda row: "-" if row.cpu is None else f"{row.cpu:.0f}%"),
    Column("TIME", lambda row: "-" if row.info.cpu_seconds is None else f"{row.info.cpu_seconds:.1f}s"),
    Column("MEMORY", lambda row: size(row.info.rss_bytes)),
    Column("AGE", lambda row: age(row.info.created_at)),
]


class Usage:
    """Looks at jobs that have not ended, those that use most CPU first.

    Args:
        router: where.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        self._last: dict[str, tuple[float, float]] = {}

    def rows(self) -> list[Row]:
        """Return the jobs as they are now."""
        rows = [self._row(job.latest) for job in self._router.list(state=["NEW", "PENDING", "RUNNING"])]
        return sorted(rows, key=lambda row: (-(row.cpu or 0.0), row.info.name))

    def _row(self, info: JobInfo) -> Row:
        moment, used = time.monotonic(), info.cpu_seconds
        before = self._last.get(info.uid)
        if used is None:
            return Row(info, None)
        self._last[info.uid] = (moment, used)
        if before is None or moment <= before[0]:
            return Row(info, None)
        return Row(info, max(0.0, (used - before[1]) / (moment - before[0]) * 100))
