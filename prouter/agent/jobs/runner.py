"""The runner interface: how an agent starts jobs, acts on them and learns of their end.

All methods block the calling greenlet only, and many greenlets may call them at once. The runner for the agent's own
machine is `prouter.agent.jobs.local_runner`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from prouter.processes.limits import Limits
from prouter.processes.users import User

__all__ = ["Exit", "Kept", "Limits", "Runner", "SpawnSpec", "Spawned", "Usage"]


@dataclass(frozen=True)
class SpawnSpec:
    """A job to start.

    Attributes:
        job: uid, 32 hex digits.
        argv: the command, looked up in the PATH of `env`, and its arguments.
        env: the whole environment; ``PROUTER_JOB_ID`` is added.
        cwd: absolute path of the directory to start in.
        stdout: absolute path of the file to append to (made with mode 0600), None for the agent's own stdout.
        record: what the agent wants to know again after its own restart; JSON.
        remove_on_loss: the job's sandbox, which is deleted if the agent ends and does not come back in time.
        user: whom the job runs as; None for the agent's own user.
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


@dataclass(frozen=True)
class Spawned:
    """A job's first process.

    Attributes:
        start_time: clock ticks since the machine booted; with the pid it identifies the process.
        started_at: seconds since the epoch.
    """

    job: str
    pid: int
    start_time: int
    started_at: float


@dataclass(frozen=True)
class Exit:
    """How a job ended. No process of its tree is left.

    Attributes:
        exit_code, signal: of the first process. One is None, or both if nobody saw its end because the keeper died.
        reason: ``memory``, ``cpu`` or ``processes`` if the job exceeded that limit, ``agent_lost`` if the keeper died,
            else None.
        cpu_seconds: of the whole tree, as far as a parent in it has waited for ended processes.
        max_rss: bytes of resident memory of the largest process (getrusage(2); never less than the keeper's own).
        at: when the first process ended, seconds since the epoch.
    """

    job: str
    exit_code: int | None
    signal: str | None
    reason: str | None
    cpu_seconds: float
    max_rss: int
    at: float


@dataclass(frozen=True)
class Kept:
    """A job that outlived an earlier agent.

    Attributes:
        spawned: its first process, None if it was not started.
        exit: how it ended, None if it runs or was not started.
    """

    job: str
    record: dict[str, Any]
    remove_on_loss: str | None
    spawned: Spawned | None
    exit: Exit | None


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


class Runner(Protocol):
    """A place where jobs run. Every method raises `AgentUnavailable` if that place cannot be reached."""

    def open(self) -> list[Kept]:
        """Begin, and return the jobs that outlived an earlier agent.

        Raises:
            Conflict: another agent uses the same state.
        """

    def hold(self, job: str, record: dict[str, Any], remove_on_loss: str | None) -> None:
        """Remember a job that is not started yet. Arguments as of `SpawnSpec`.

        Raises:
            Conflict: the runner knows the job already.
        """

    def spawn(self, spec: SpawnSpec) -> Spawned:
        """Start a job, held or new; return once its command runs.

        Raises:
            StartFailed: the command could not be executed. The job may be started again.
            Conflict: the job was started already.
        """

    def update_record(self, job: str, record: dict[str, Any]) -> None:
        """Replace a job's record.

        Raises:
            NotFound: the runner does not know the job.
        """

    def signal(self, job: str, signum: int, *, tree: bool = True) -> None:
        """Send a signal to all processes of a job, or to the first process alone.

        Raises:
            NotFound, Conflict: the runner does not know the job; it does not run.
        """

    def kill(self, job: str) -> None:
        """Kill a job's process tree; return when no process of it is left, at once if none runs.

        Raises:
            NotFound: the runner does not know the job.
        """

    def usage(self, job: str) -> Usage:
        """What a job uses now.

        Raises:
            NotFound, Conflict: the runner does not know the job; it does not run.
        """

    def processes(self, job: str) -> list[int]:
        """Pids of a job's living processes, parents first.

        Raises:
            NotFound, Conflict: the runner does not know the job; it does not run.
        """

    def forget(self, job: str) -> None:
        """Drop a job that does not run. From then on its sandbox is the caller's alone.

        Raises:
            NotFound, Conflict: the runner does not know the job; it runs.
        """

    def configure(self, *, keep_for: float) -> None:
        """Change for how many seconds jobs outlive the agent."""

    def leave_death_notice(self, argv: list[str], environment: dict[str, str], text: str) -> None:
        """Have a command run once the agent has died and its jobs have ended: it tells the routers.

        Args:
            argv: the program and its arguments.
            environment: variables that it needs.
            text: what it reads from stdin.
        """

    def close(self, *, end_jobs: bool) -> None:
        """Stop. With `end_jobs` all process trees end and sandboxes are removed; else jobs run on for `keep_for`."""
