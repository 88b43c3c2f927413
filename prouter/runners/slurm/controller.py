"""Calls of Slurm's commands. Each blocks its greenlet only, also while Slurm's controller does not answer."""

from __future__ import annotations

import errno
import os
import subprocess
from typing import NamedTuple

from gevent.threadpool import ThreadPool

from prouter.errors import AgentUnavailable
from prouter.runners.slurm.commands import refusal

__all__ = ["Controller", "Outcome", "submit_environment"]

_AWAY = (
    "unable to contact slurm controller",
    "socket timed out",
    "communication connection failure",
    "unexpected message received",
    "zero bytes were transmitted",
    "temporarily unable to accept",
    "slurm backup controller in standby",
    "protocol authentication error",
    "munge encode failed",
    *(
        os.strerror(code).lower()
        for code in (
            errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN, errno.EPIPE, errno.ETIMEDOUT,
            errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN,
        )
    ),
)  # fmt: skip
"""What commands print, in lower case, when it is unknown whether the controller has carried them out, or when it cannot
at this moment."""

_PASSED = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "SLURM_CONF", "SLURM_CONF_SERVER", "XDG_RUNTIME_DIR")
_AT_ONCE = 4
"""Commands of one kind at once; looks do not wait for changes."""


class Outcome(NamedTuple):
    """What a command has done."""

    code: int
    stdout: str
    stderr: str


class Controller:
    """Slurm's controller, by its commands.

    Args:
        timeout: seconds that one command may take.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._environment = submit_environment()
        self._looks = ThreadPool(_AT_ONCE)
        self._changes = ThreadPool(_AT_ONCE)

    def look(self, argv: list[str]) -> Outcome:
        """Run a command that changes nothing.

        Raises:
            AgentUnavailable: the controller does not answer, or the command is not installed.
        """
        return self._call(self._looks, argv, "")

    def change(self, argv: list[str], stdin: str = "") -> Outcome:
        """Run a command that changes something. If this raises, it may have done so.

        Raises:
            AgentUnavailable: as of `look`.
        """
        return self._call(self._changes, argv, stdin)

    def close(self) -> None:
        """End the threads."""
        self._looks.kill()
        self._changes.kill()

    def _call(self, pool: ThreadPool, argv: list[str], stdin: str) -> Outcome:
        outcome: Outcome = pool.apply(self._run, (argv, stdin))
        if outcome.code and any(text in outcome.stderr.lower() for text in _AWAY):
            raise AgentUnavailable(
                f"Slurm's controller does not answer {argv[0]}: {refusal(outcome.stderr)}", retry_after=5.0
            )
        return outcome

    def _run(self, argv: list[str], stdin: str) -> Outcome:
        try:
            done = subprocess.run(
                argv,
                input=stdin,
                env=self._environment,
                capture_output=True,
                text=True,
                encoding="utf-8",
                errors="replace",
                timeout=self._timeout,
                cwd="/",
            )
        except subprocess.TimeoutExpired as error:
            # sbatch says why it waits, for example for Slurm to take more jobs (MaxJobCount), and tries for minutes.
            said = (error.stderr or b"").decode("utf-8", "replace")
            return Outcome(1, "", f"{said}\nsocket timed out: no answer within {self._timeout:g} s")
        except OSError as error:
            raise AgentUnavailable(
                f"Slurm's command {argv[0]} cannot be run: {error.strerror}; install Slurm's client commands on the "
                "agent's machine, and put them into the PATH of the agent"
            ) from None
        return Outcome(done.returncode, done.stdout, done.stderr)


def submit_environment() -> dict[str, str]:
    """The variables for Slurm's commands, of which jobs get all: as few as possible. Others would set options
    (``SBATCH_PARTITION``), or change what is printed (``SLURM_TIME_FORMAT``, ``SQUEUE_FORMAT``)."""
    return {name: os.environ[name] for name in _PASSED if name in os.environ} | {"LC_ALL": "C.UTF-8"}
