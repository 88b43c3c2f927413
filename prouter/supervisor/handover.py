"""Command lines of the supervisor's children, with the configuration in a file and a clean environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

import prouter
from prouter.config import RouterConfig
from prouter.supervisor.child import Command

__all__ = ["Handover"]

_NOT_FOR_CHILDREN = ("PROUTER_", "GUNICORN_", "NOTIFY_SOCKET", "LISTEN_", "WATCHDOG_")
"""Variables that were meant for the supervisor alone: children read its configuration from the file, and only the
supervisor notifies the service manager."""


class Handover:
    """Makes the children's command lines for one run directory.

    Args:
        run_dir: directory of mode 0700 for the configuration file, which holds tokens.
        connection_debug: make children log everything about connections between the processes.
    """

    def __init__(self, run_dir: Path, *, connection_debug: bool) -> None:
        self._file = run_dir / "router.yaml"
        self._connection_debug = connection_debug

    def write(self, config: RouterConfig) -> None:
        """Write the configuration for children that start from now on."""
        fresh = self._file.with_suffix(".new")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as stream:
            yaml.safe_dump(config.model_dump(mode="json"), stream, allow_unicode=True)
        fresh.rename(self._file)

    def remove(self) -> None:
        """Delete the file. Idempotent."""
        self._file.unlink(missing_ok=True)

    def broker(self, status: int, port: str | None) -> Command:
        """Return the broker's command.

        Args:
            status: the descriptor to which the broker writes its endpoint for agents.
            port: the port for agents, None to take the configured one.
        """
        argv = [sys.executable, "-m", "prouter", "broker", "--status-fd", str(status)]
        if port is not None:
            argv += ["--bind-port", port]
        if self._connection_debug:
            argv.append("--connection-debug")
        return Command(argv, self._environment(), [status])

    def gunicorn(self, listeners: Sequence[int]) -> Command:
        """Return gunicorn's command, for inherited listening sockets."""
        environment = self._environment()
        environment["PROUTER_LISTEN_FDS"] = ",".join(map(str, listeners))
        if self._connection_debug:
            environment["PROUTER_CONNECTION_DEBUG"] = "1"
        # Named, because gunicorn would read a gunicorn.conf.py of the working directory otherwise.
        settings = Path(prouter.__file__).parent / "web" / "gunicorn" / "conf.py"
        return Command([sys.executable, "-m", "gunicorn", "-c", str(settings)], environment, listeners)

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_CHILDREN)}
        kept["PROUTER_CONFIG"] = str(self._file)
        return kept
