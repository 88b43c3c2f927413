"""A router and an agent for the demonstration, on free ports, with all their files in one temporary directory."""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, cast

import yaml

from prouter.errors import PRouterError

__all__ = ["DemoFailed", "Stand"]

_PR_SET_PDEATHSIG = 1
_READY_WITHIN = 60.0
_STOP_WITHIN = 30.0


class DemoFailed(PRouterError):
    """The demonstration cannot go on; the text says what failed."""


class Stand:
    """A running router with one agent, until `close`.

    Args:
        directory: for configuration, state, sandboxes and logs; only this user may enter it.
        workers: number of the router's workers.

    Attributes:
        url: base URL of the router's HTTP API.
        agent: uid of the agent.

    Raises:
        DemoFailed: one of them did not start.
    """

    def __init__(self, directory: Path, *, workers: int = 2) -> None:
        self._directory = directory
        self._processes: list[_Process] = []
        token = secrets.token_hex(16)
        try:
            router = self._start("up", _router_settings(directory, token, workers))
            ready = router.wait_line(r"ready control=(\S+) agents=tcp://(\S+)")
            self.url, address = ready.groups()
            agent = self._start("agent", _agent_settings(directory, token, address))
            self.agent: str = agent.wait_line(r"ready agent=(\S+)")[1]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Stand:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def watch(self) -> NoReturn:
        """Block until one of the processes ends.

        Raises:
            DemoFailed: one has ended.
        """
        with selectors.DefaultSelector() as selector:
            for process in self._processes:
                selector.register(process, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    cast(_Process, key.fileobj).read()

    def close(self) -> None:
        """End the agent with its jobs, then the router. Idempotent."""
        while self._processes:
            self._processes.pop().stop()

    def _start(self, command: str, settings: Mapping[str, Any]) -> _Process:
        process = _Process(command, settings, self._directory)
        self._processes.append(process)
        return process


def _router_settings(directory: Path, token: str, workers: int) -> dict[str, Any]:
    return {
        "control": {"port": 0, "workers": workers, "drain_delay": 0, "drain_timeout": 3},
        "server": {"port": 0, "accept_tokens": [token]},
        "state": {"dir": str(directory / "router"), "run_dir": str(directory / "run")},
    }


def _agent_settings(directory: Path, token: str, address: str) -> dict[str, Any]:
    return {
        "client": {"address": address, "token": token},
        "identity": {"name": "demo agent"},
        "jobs": {"root": str(directory / "sandboxes")},
        "state": {"dir": str(directory / "agent")},
    }


class _Process:
    """One ``prouter`` process, which the kernel ends when this process dies."""

    def __init__(self, command: str, settings: Mapping[str, Any], directory: Path) -> None:
        self._name = f"prouter {command}"
        self._log = directory / f"{command}.log"
        config = directory / f"{command}.yaml"
        config.write_text(yaml.safe_dump(dict(settings)))
        libc = ctypes.CDLL(None)

        def end_with_parent() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

        with self._log.open("wb") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "prouter", command, "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={name: value for name, value in os.environ.items() if not name.startswith("PROUTER_")},
                start_new_session=True,  # Ctrl-C reaches the demonstration alone, which ends them in order.
                preexec_fn=end_with_parent,
            )

    def wait_line(self, pattern: str) -> re.Match[str]:
        """Wait for a whole line on its stdout that matches; return the match.

        Raises:
            DemoFailed: none came in time, or the process ended.
        """
        text, deadline = "", time.monotonic() + _READY_WITHIN
        with selectors.DefaultSelector() as selector:
            selector.register(self, selectors.EVENT_READ)
            while selector.select(max(0.0, deadline - time.monotonic())):
                text += self.read()
                match = re.search(rf"^{pattern}\n", text, re.MULTILINE)
                if match:
                    return match
        raise DemoFailed(f"{self._name} was not ready within {_READY_WITHIN:g} s:\n{self._log_end()}")

    def fileno(self) -> int:
        """Descriptor of its stdout."""
        assert self._popen.stdout is not None
        return self._popen.stdout.fileno()

    def read(self) -> str:
        """Return what it wrote to stdout since the last call.

        Raises:
            DemoFailed: it has ended.
        """
        data = os.read(self.fileno(), 4096)
        if not data:
            status = self._popen.wait(_STOP_WITHIN)
            raise DemoFailed(f"{self._name} ended with status {status}:\n{self._log_end()}")
        return data.decode(errors="replace")

    def stop(self) -> None:
        """Send TERM, and KILL if that takes too long."""
        self._popen.terminate()
        try:
            self._popen.wait(_STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        if self._popen.stdout is not None:
            self._popen.stdout.close()

    def _log_end(self) -> str:
        return self._log.read_text(errors="replace")[-2000:].strip()
