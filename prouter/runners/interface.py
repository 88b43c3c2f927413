"""The runner interface: how an agent starts jobs, acts on them, reaches their servers and learns of their end.

`prouter.runners` is the public name of all that is here, docs/runners.md the guide for those who write a runner, and
`prouter.testing.runner_conformance` the tests that every runner has to pass.

All methods block the calling greenlet only, and many greenlets may call them at once.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from prouter.errors import InvalidRequest
from prouter.processes.limits import Limits
from prouter.processes.users import User
from prouter.runners.capabilities import Capabilities
from prouter.runners.ownership import loopback_addresses, no_such_port
from prouter.runners.sockets import Address, Sockets

__all__ = [
    "Exit",
    "Kept",
    "Limits",
    "Queued",
    "Reports",
    "Runner",
    "SpawnSpec",
    "Spawned",
    "Usage",
]


@dataclass(frozen=True)
class SpawnSpec:
    """A job to start.

    Attributes:
        job: uid, 32 hex digits.
        argv: the command, looked up in the PATH of `env`, and its arguments.
        env: the whole environment; ``PROUTER_JOB_ID`` is added.
        cwd: absolute path of the directory to start in.
        stdout: absolute path of the file to append to (made with mode 0600), None for the agent's own stdout.
        record: what the agent gets back from `Runner.open` after its own restart; JSON.
        remove_on_loss: the job's sandbox, which is deleted if the agent ends and does not come back in time.
        user: whom the job runs as; None for the agent's own user.
        name: of the job, for people; any text.
        resources: what the request asks for, by name: ``cpus``, ``memory`` (bytes), ``gpus`` …; checked by `check`.
        options: the request's options for this runner; checked by `check`.
        port: the port that the agent chose for the job's server, None if it chose none. With another machine than the
            agent's the runner makes sure that it is free there: else the start fails with the reason ``port_taken``.
        report_variable: the variable by which the job is to learn the URL where it reports its ports, if it reports any
            and runs on another machine: the runner serves such a URL on loopback there (docs/runners.md), sets the
            variable, and passes the reports on (`Reports.port`). None otherwise.
        timeout: seconds after its start at which the agent will end the job, if the request says so; a queue may plan
            with it.
    """

    job: str
    argv: list[str]
    env: dict[str, str]
    cwd: str
    stdout: str | None = None
    stderr: str | None = None
    limits: Limits = field(default_factory=Limits)
    record: dict[str, Any] = field(default_factory=dict)
    remove_on_loss: str | None = None
    user: User | None = None
    name: str = ""
    resources: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    port: int | None = None
    report_variable: str | None = None
    timeout: float | None = None


@dataclass(frozen=True)
class Spawned:
    """A job's first process.

    Attributes:
        start_time: clock ticks since the machine booted; with the pid it identifies the process.
        started_at: seconds since the epoch.
        node: name of the machine where it runs, if that is not the agent's.
    """

    job: str
    pid: int
    start_time: int
    started_at: float
    node: str | None = None


@dataclass(frozen=True)
class Queued:
    """A start that waits in a queue.

    Attributes:
        reason: why it waits, in the words of the queue: ``Resources``, ``Priority`` …; empty if it is not known.
        expected_start: seconds since the epoch, None if it is not known.
    """

    job: str
    reason: str = ""
    expected_start: float | None = None


@dataclass(frozen=True)
class Exit:
    """How a job ended. No process of its tree is left.

    Attributes:
        exit_code, signal: of the first process. One is None, or both if nobody saw its end because the keeper died.
        reason: a value of `prouter.jobs.Reason`. ``memory``, ``cpu`` or ``processes`` if the job exceeded that limit,
            ``walltime`` if the queue's time limit was over, ``node_failed``, ``preempted``, ``cancelled`` if somebody
            else ended or unqueued it, ``agent_lost`` if its keeper died, ``start_failed`` if its command could not be
            executed once its turn came, ``port_taken`` if `SpawnSpec.port` was not free; else None.
        cpu_seconds: of the whole tree, as far as a parent in it has waited for ended processes.
        max_rss: bytes of resident memory of the largest process (getrusage(2); never less than the keeper's own).
        at: when the first process ended, seconds since the epoch.
        node: as of `Spawned`.
        text: more to tell for people, in whole sentences; empty if there is nothing.
    """

    job: str
    exit_code: int | None
    signal: str | None
    reason: str | None
    cpu_seconds: float
    max_rss: int
    at: float
    node: str | None = None
    text: str = ""


@dataclass(frozen=True)
class Kept:
    """A job that outlived an earlier agent.

    Attributes:
        spawned: its first process, None if it was not started.
        exit: how it ended, None if it runs or was not started.
        queued: how its start waits; None if it does not.
    """

    job: str
    record: dict[str, Any]
    remove_on_loss: str | None
    spawned: Spawned | None
    exit: Exit | None
    queued: Queued | None = None


@dataclass(frozen=True)
class Usage:
    """What a process tree uses.

    Attributes:
        rss_bytes: resident memory; shared pages count for each process.
        processes: how many there are.
    """

    cpu_seconds: float
    rss_bytes: int
    processes: int


class Reports(Protocol):
    """What a runner reports to its agent. Each method may block its greenlet, and raises nothing but what it says.

    Reports of one job come in order: `queued` any number of times, `running` once, `exited` once; none once `forget`
    has returned.
    """

    def queued(self, queued: Queued) -> None:
        """A start for which `spawn` returned `Queued`, or that `open` returned as queued, waits for another reason."""

    def running(self, spawned: Spawned) -> None:
        """Such a start is over: the command runs. Not for jobs that `spawn` returned as `Spawned`."""

    def exited(self, end: Exit) -> None:
        """A job has ended, or its queued start has failed. After `spawn` has returned; not for what `open` returned."""

    def port(self, job: str, port: int) -> None:
        """A job that runs on another machine reports its port (``expose.port`` is ``notify``, docs/jobs.md).

        Raises:
            PRouterError: the report is refused; its detail is for the job, with the status 400.
        """


class Runner(ABC):
    """Starts and ends jobs in some place. Every method raises `AgentUnavailable` if that place cannot be reached now.

    An implementation is a subclass. `check`, `exiting`, `find`, `connect_at_once` and `leave_death_notice` have
    defaults; the other methods it has to implement.

    Attributes:
        capabilities: what it can do.
    """

    capabilities: Capabilities

    @abstractmethod
    def open(self, reports: Reports) -> list[Kept]:
        """Begin, and return the jobs that outlived an earlier agent.

        Raises:
            Conflict: another agent uses the same state.
        """

    def check(self, limits: Limits, resources: Mapping[str, float], options: Mapping[str, Any]) -> None:
        """Refuse a start that can never be carried out, before anything is changed. It does not block; what only the
        place itself can tell, `spawn` finds out.

        Args:
            limits: those of the job.
            resources, options: as of `SpawnSpec`.

        Raises:
            InvalidRequest: a resource or an option is not known or is wrong; the detail names it.
        """
        if resources:
            raise InvalidRequest(f"Invalid request: resources.{next(iter(resources))}: this runner reserves nothing")
        if options:
            raise InvalidRequest(f"Invalid request: {next(iter(options))}: this runner has no options for a job")

    @abstractmethod
    def hold(self, job: str, record: dict[str, Any], remove_on_loss: str | None) -> None:
        """Remember a job that is not started yet. Arguments as of `SpawnSpec`.

        Raises:
            Conflict: the runner knows the job already.
        """

    @abstractmethod
    def spawn(self, spec: SpawnSpec, wait: float) -> Spawned | Queued:
        """Start a job, held or new; return once its command runs, or waits in a queue.

        The runner stores the job before it asks anybody to start it. If it cannot find out whether that happened, or
        its place does not answer, it returns `Queued` and goes on by itself, so that nothing is lost or started twice.
        It raises only if it is sure that nothing was started.

        Args:
            wait: seconds after which it returns `Queued` if the start has to wait; 0 for at once.

        Raises:
            StartFailed: the command could not be executed. The job may be started again.
            Conflict: the job was started already.
        """

    @abstractmethod
    def update_record(self, job: str, record: dict[str, Any]) -> None:
        """Replace a job's record.

        Raises:
            NotFound: the runner does not know the job.
        """

    @abstractmethod
    def signal(self, job: str, signum: int, *, tree: bool = True) -> None:
        """Send a signal to all processes of a job, or to the first process alone.

        Raises:
            NotFound, Conflict: the runner does not know the job; it does not run.
        """

    @abstractmethod
    def kill(self, job: str) -> None:
        """Kill a job's process tree, or take its start out of the queue; return when no process of it is left and none
        will be, at once if nothing runs or waits. The end of what ran or waited is reported (`Reports.exited`).

        Raises:
            NotFound: the runner does not know the job.
        """

    @abstractmethod
    def usage(self, job: str) -> Usage:
        """Return what a job uses now.

        Raises:
            NotFound, Conflict: the runner does not know the job; it does not run.
        """

    @abstractmethod
    def processes(self, job: str) -> list[int]:
        """Return the pids of a job's living processes where it runs, parents first.

        Raises:
            NotFound, Conflict: the runner does not know the job; it does not run.
        """

    def exiting(self, job: str) -> bool:
        """Return whether the first process of a job is known to be ending at this moment, which explains that its
        connections end. It does not block; a runner that cannot know returns False.
        """
        return False

    @abstractmethod
    def listeners(self, job: str) -> Sockets:
        """Return the sockets on which a job's processes listen now where it runs, and those of others there.

        Raises:
            NotFound, Conflict: the runner does not know the job; it does not run.
        """

    def find(self, job: str, port: int) -> Address:
        """Return a loopback address with this port, where the job runs, that leads to the job.

        Raises:
            NotFound: no process of the job listens there; the code is ``no_such_port``.
        """
        sockets = self.listeners(job)
        found = loopback_addresses(port, sockets)
        if not found:
            raise no_such_port(job, port, sockets)
        return found[0]

    def connect_at_once(self, job: str, address: Address) -> socket.socket | None:
        """Connect as `connect` does if that takes no waiting, else return None. It is called in the event loop and does
        not block; a runner that would have to wait in any case does not override it.
        """
        return None

    @abstractmethod
    def connect(self, job: str, address: Address, timeout: float, *, assigned: bool = False) -> socket.socket:
        """Connect to a server of a job where it runs, and make sure that the job has got the connection.

        Args:
            address: on loopback, or a unix socket.
            timeout: seconds.
            assigned: whether it is the port of `SpawnSpec.port`.

        Returns:
            A connected stream socket that does not block. It is the kernel's own, with a descriptor that can be polled:
            a runner that encrypts or multiplexes gives one end of a socketpair(2).

        Raises:
            OSError: nothing accepts a connection there, for example ConnectionRefusedError, or TimeoutError.
            JobUnreachable: another program listens there.
            NotFound, Conflict: the runner does not know the job; it does not run.
        """

    @abstractmethod
    def forget(self, job: str) -> None:
        """Drop a job that does not run and does not wait. From then on its sandbox is the caller's alone.

        Raises:
            NotFound, Conflict: the runner does not know the job; it runs, or waits in the queue.
        """

    def leave_death_notice(self, argv: list[str], environment: dict[str, str], text: str) -> None:
        """Have a command run on the agent's machine once the agent has died and its jobs have ended: it tells the
        routers. A runner whose jobs always outlive the agent need not do anything.

        Args:
            argv: the program and its arguments.
            environment: variables that it needs.
            text: what it reads from stdin.
        """
        return

    @abstractmethod
    def close(self, *, end_jobs: bool) -> None:
        """Stop. With `end_jobs` all process trees end, queued starts are cancelled and sandboxes are removed; else jobs
        run on for `Setup.keep_for`. Nothing is reported any more.
        """
