"""The servers of an agent's jobs, reached through its runner."""

from __future__ import annotations

import socket

from prouter.agent.jobs.starts.starting import Starter
from prouter.agent.jobs.state.table import JobTable
from prouter.runners.interface import Runner
from prouter.runners.sockets import Address

__all__ = ["JobServers"]


class JobServers:
    """Connections to jobs' servers, as relays need them."""

    def __init__(self, jobs: JobTable, runner: Runner, starter: Starter) -> None:
        self._jobs = jobs
        self._runner = runner
        self._starter = starter

    def connect_at_once(self, job: str, address: Address) -> socket.socket | None:
        """See `Runner.connect_at_once`."""
        return self._runner.connect_at_once(job, address)

    def connect(self, job: str, address: Address, timeout: float) -> socket.socket:
        """Connect to a server of a job. Errors as of `Runner.connect`."""
        return self._starter.connect(self._jobs.find(job), address, timeout)

    def find(self, job: str, port: int) -> Address:
        """See `Runner.find`."""
        return self._runner.find(job, port)

    def exiting(self, job: str) -> bool:
        """See `Runner.exiting`."""
        return self._runner.exiting(job)
