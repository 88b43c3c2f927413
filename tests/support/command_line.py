"""``prouter`` as a user runs it, with a router of its own choosing and without the tests' own settings."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from prouter.cli import main
from tests.support.processes import Router

__all__ = ["CommandLine"]

_LONGEST = 90.0
"""Seconds after which a command that was started has hung."""


class CommandLine:
    """Runs commands against a router.

    Args:
        url: of the router.
        home: directory for contexts.
        token: PROUTER_TOKEN, or None.
    """

    def __init__(self, url: str, home: Path, token: str | None = None) -> None:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PROUTER_", "PYTHONUNBUFFERED"))
        }
        given = {"PROUTER_TOKEN": token} if token else {}
        self.environment: Mapping[str, str] = {
            **kept,
            **given,
            "PROUTER_URL": url,
            "XDG_CONFIG_HOME": str(home / "config"),
            "NO_COLOR": "1",
        }

    @classmethod
    def of(cls, router: Router, home: Path) -> CommandLine:
        """Return a command line for a router that asks nobody for a token."""
        return cls(router.url, home)

    def __call__(
        self, *arguments: str, stdin: bytes = b"", cwd: Path | None = None, code: int | None = 0
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end, which has to have this exit code (None for any)."""
        done = subprocess.run(
            self.argv(*arguments),
            input=stdin,
            capture_output=True,
            env=self.environment,
            cwd=cwd,
            timeout=60,
            check=False,
        )
        assert code is None or done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done

    def text(self, *arguments: str, code: int | None = 0) -> str:
        """Run a command in this process, which is cheap; return what it prints as text."""
        done = CliRunner(env=dict(self.environment)).invoke(main, arguments, prog_name="prouter")
        assert code is None or done.exit_code == code, (done.exit_code, done.output)
        return done.stdout

    def refused(self, *arguments: str, code: int) -> str:
        """Run a command in this process that fails with this exit code; return its one line on stderr."""
        done = CliRunner(env=dict(self.environment)).invoke(main, arguments, prog_name="prouter")
        assert done.exit_code == code, (done.exit_code, done.output)
        [line] = done.stderr.splitlines()
        assert line.startswith("prouter: ")
        return line

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command; stdout and stderr are pipes unless `options` say otherwise. It is killed if it hangs.

        The pipes have no buffers, in which `communicate` would not find what came along with a line that was read.
        """
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options}
        command = subprocess.Popen(self.argv(*arguments), env=self.environment, bufsize=0, **pipes)
        timer = threading.Timer(_LONGEST, command.kill)
        timer.daemon = True
        timer.start()
        return command

    @staticmethod
    def argv(*arguments: str) -> list[str]:
        """Return the command's arguments with the program's."""
        return [sys.executable, "-m", "prouter", *arguments]
