"""Progress bars of transfers, on stderr and only on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prouter.texts import visible

__all__ = ["progress_bar"]

Progress = Callable[[int, int | None], None]


def _no_bar(done: int, total: int | None) -> None:
    """Show nothing."""


@contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """Give a callback for a transfer (bytes done, bytes in all or None), which shows a bar where somebody sees it."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _no_bar
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(visible(label), total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
