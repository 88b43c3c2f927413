"""Jobs in the browser of whoever runs the command."""

from __future__ import annotations

import os
import sys
import webbrowser

from prouter.cli.remote.exits import Exit
from prouter.cli.remote.failures import Failure
from prouter.client import Job

__all__ = ["address", "open_in_browser"]


def address(job: Job, page: str = "") -> str:
    """Return a URL that opens a job's server, once followed within a minute.

    Args:
        page: path and query below the job's address, at which to begin.

    Raises:
        Failure: the job has no server, or has ended.
    """
    info = job.info()
    if info.ended:
        raise Failure(f"job '{info.name or info.uid}' has ended: 'prouter explain {info.uid}' tells how", Exit.ERROR)
    if info.url is None:
        raise Failure(
            f"job '{info.name or info.uid}' has no server: start it with --port or --preset ('prouter run --help')"
        )
    return job.open_url(page)


def open_in_browser(url: str) -> bool:
    """Open a URL; return False if there is no browser here that shows windows."""
    graphical = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not graphical and not os.environ.get("BROWSER"):
        return False
    try:
        return webbrowser.open(url)
    except webbrowser.Error:
        return False
