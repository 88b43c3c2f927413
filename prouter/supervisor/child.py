"""One supervised process, which is started again with growing delays when it fails."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["EXIT_CONFIG", "Child", "Command"]

log = logging.getLogger("prouter.supervisor")

EXIT_CONFIG = 2
"""Exit status of a process whose configuration is wrong; starting it again would not help."""
_PR_SET_PDEATHSIG = 1
_FIRST_DELAY, _MAX_DELAY = 0.1, 5.0
_MAX_FAILURES = 10


@dataclass(frozen=True, slots=True)
class Command:
    """A command line, with its environment and the descriptors it inherits."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    descriptors: Sequence[int] = field(default=())


class Child:
    """A process that is kept running.

    The process leads a session of its own, so that Ctrl-C in a terminal reaches the supervisor alone. The kernel sends
    it `death_signal` when the supervisor dies, however that happens (prctl(2), PR_SET_PDEATHSIG).

    Args:
        name: for the log.
        death_signal: see above.
        cwd: working directory.
        command: called for each start.

    Attributes:
        next_start: seconds on the monotonic clock when it may start again; meaningful while it does not run.
    """

    def __init__(self, name: str, death_signal: int, cwd: str, command: Callable[[], Command]) -> None:
        self.name = name
        self.next_start = 0.0
        self._command = command
        self._cwd = cwd
        self._death_signal = death_signal
        self._process: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._works = False
        self._ever_worked = False

    @property
    def running(self) -> bool:
        """Whether it was started, and `ended` has not reported its end yet."""
        return self._process is not None

    @property
    def works(self) -> bool:
        """Whether it runs, and `worked` was called since it started."""
        return self._works

    @property
    def hopeless(self) -> bool:
        """Whether to give it up: it failed too often in a row, or its configuration is wrong."""
        return self._failures >= _MAX_FAILURES

    def start(self) -> None:
        """Execute the command."""
        command = self._command()
        libc, parent, death_signal = ctypes.CDLL(None), os.getpid(), self._death_signal

        def die_with_parent() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, death_signal)
            # The parent may have died before prctl: then no signal will come.
            if os.getppid() != parent:
                os._exit(1)

        self._process = subprocess.Popen(
            command.argv,
            cwd=self._cwd,
            env=command.environment,
            pass_fds=command.descriptors,
            preexec_fn=die_with_parent,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
        )
        log.info("event=child_started child=%s pid=%d", self.name, self._process.pid)

    def worked(self) -> None:
        """Note that it does its work: earlier failures no longer count."""
        self._works = self._ever_worked = True
        self._failures = 0

    def ended(self, *, expected: bool = False) -> bool:
        """Whether it has just ended; if so, `next_start` is set. An `expected` end counts as no failure."""
        status = self._process.poll() if self._process is not None else None
        if status is None:
            return False
        self._process = None
        self._works = False
        if expected:
            return True
        # A wrong configuration fails again. Later, a reload may have brought it, and the next one may mend it.
        self._failures = _MAX_FAILURES if status == EXIT_CONFIG and not self._ever_worked else self._failures + 1
        delay = min(_FIRST_DELAY * 2 ** (self._failures - 1), _MAX_DELAY)
        self.next_start = time.monotonic() + delay
        log.warning("event=child_ended child=%s status=%d failures=%d", self.name, status, self._failures)
        return True

    def signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self._process is not None:
            self._process.send_signal(number)

    def finish(self, patience: float) -> None:
        """Terminate it, kill it after `patience` seconds, and wait for its end."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            log.error("event=child_killed child=%s pid=%d", self.name, self._process.pid)
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        self._process = None
