"""Tell the routers that the agent died, by a command that the agent left for this moment.

The keeper itself speaks no network protocol: it has the standard library only. The command
(`prouter.agent.links.death_notice`) uses the project's transports and its encryption.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import subprocess

__all__ = ["Delivery", "Notice"]

_PATIENCE = 15.0
"""Seconds that the command gets. It gives up by itself much sooner; only a machine without memory or processor is
slower."""


class Notice(NamedTuple):
    """The command that tells the routers.

    Attributes:
        argv: the program and its arguments; empty when there is no router to tell.
        environment: variables that it needs beside the keeper's.
        input: what it reads from stdin, with tokens and keys; never logged.
    """

    argv: list[str]
    environment: dict[str, str]
    input: str


class Delivery:
    """A running command.

    Args:
        notice: what to run.
        log: gets each line that the command prints, and why it failed.
    """

    def __init__(self, notice: Notice, log: Callable[[str], None]) -> None:
        self._notice = notice
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        if not notice.argv:
            return
        try:
            # Imported here, since a keeper needs it once in its life, and its memory counts.
            import subprocess

            self._process = subprocess.Popen(
                notice.argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, **notice.environment},
                cwd="/",
                text=True,
                errors="replace",
            )
        except OSError as error:
            log(f"event=death_notice_not_sent error={error.strerror!r}")

    def finish(self) -> None:
        """Wait until the command has ended; kill it if it takes too long."""
        process = self._process
        if process is None:
            return
        import subprocess

        try:
            output = process.communicate(self._notice.input, timeout=_PATIENCE)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            output = process.communicate()[0]
            self._log(f"event=death_notice_not_sent error='it took more than {_PATIENCE:.0f} s'")
        for line in output.splitlines():
            self._log(line)
