"""What runners have in common whose jobs are processes of the agent's own machine."""

from __future__ import annotations

import socket
from collections.abc import Callable

from prouter.errors import PRouterError
from prouter.processes.process_tree import cpu_seconds, descend, read_process, rss_bytes, send
from prouter.runners.interface import Usage
from prouter.runners.local.listening_sockets import survey
from prouter.runners.local.servers import Look, Servers
from prouter.runners.sockets import Address, Sockets

__all__ = ["SameMachine"]


class SameMachine:
    """Usage, signals, listeners and connections of jobs that are processes of this machine.

    A runner passes the calls of the same names on to it. It makes sure that a connection has reached the job, which is
    more than to know who listens: another program may have the port a moment later.

    Args:
        processes: `Runner.processes` of the runner.
    """

    def __init__(self, processes: Callable[[str], list[int]]) -> None:
        self._processes = processes
        self._servers = Servers(self._look)
        self._assigned: dict[str, int] = {}

    @staticmethod
    def tree(root: int) -> list[int]:
        """Pids of a process and all its descendants that live, parents first; [] if it has ended."""
        return [process.pid for process in descend([root]) if process.alive]

    def signal(self, job: str, signum: int, *, tree: bool = True) -> None:
        """See `Runner.signal`. No other process gets the signal, even if a pid is used again meanwhile."""
        for pid in self._processes(job)[: None if tree else 1]:
            process = read_process(pid)
            if process is not None:
                send(process, signum)

    def usage(self, job: str) -> Usage:
        """See `Runner.usage`."""
        tree = [process for pid in self._processes(job) if (process := read_process(pid)) is not None]
        return Usage(cpu_seconds(tree), sum(rss_bytes(one.pid) for one in tree), len(tree))

    def listeners(self, job: str) -> Sockets:
        """See `Runner.listeners`."""
        return survey(self._processes(job))

    def find(self, job: str, port: int) -> Address:
        """See `Runner.find`. What is known of a job's sockets saves a look at its processes."""
        return self._servers.find(job, port)

    def connect_at_once(self, job: str, address: Address) -> socket.socket | None:
        """See `Runner.connect_at_once`."""
        return self._servers.connect_at_once(job, address)

    def connect(self, job: str, address: Address, timeout: float, *, assigned: bool = False) -> socket.socket:
        """See `Runner.connect`, but for jobs that are not known or do not run: the runner refuses those."""
        if assigned:
            self._assigned[job] = address.port
        return self._servers.connect(job, address, timeout)

    def forget(self, job: str) -> None:
        """Drop what is known of a job that has ended; to be called then, because its ports may be others' at once."""
        self._assigned.pop(job, None)
        self._servers.forget(job)

    def close(self) -> None:
        """Close the socket to the kernel."""
        self._servers.close()

    def _look(self, job: str) -> Look:
        try:
            return Look(self.listeners(job), self._assigned.get(job))
        except PRouterError:
            return Look(survey(()), None)  # The job has just ended.
