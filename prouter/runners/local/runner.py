"""The runner for the agent's own machine: jobs are children of a keeper process (`prouter.keeper`).

The runner connects to the keeper that an earlier agent left, or starts one, and replaces a keeper that dies.
"""

from __future__ import annotations

import logging
import socket
from dataclasses import asdict, dataclass, replace
from time import time
from typing import Any

import gevent
from gevent.lock import RLock

from prouter.errors import AgentUnavailable, Conflict, InvalidRequest, NoSpace, NotFound, PRouterError, StartFailed
from prouter.jobs import Reason
from prouter.keeper.wire import PROTOCOL
from prouter.processes.process_tree import is_exiting
from prouter.runners.capabilities import Capabilities
from prouter.runners.interface import Exit, Kept, Limits, Reports, Runner, Spawned, SpawnSpec, Usage
from prouter.runners.kinds import Setup
from prouter.runners.local.keeper_client import KeeperClient, KeeperLost, KeeperRefusal
from prouter.runners.local.same_machine import SameMachine
from prouter.runners.sockets import Address, Sockets

__all__ = ["LocalRunner"]

log = logging.getLogger("prouter.runner")

_HELLO_TIMEOUT = 90.0
"""Seconds to wait for a keeper's first answer. It may be waiting for an earlier keeper to end its jobs."""


@dataclass
class _Tracked:
    record: dict[str, Any]
    remove_on_loss: str | None
    spawned: Spawned | None = None
    exit: Exit | None = None
    starting: bool = False


class LocalRunner(Runner):
    """Runs jobs on this machine, as children of a keeper.

    Attributes:
        keeper_pid: of the keeper process, once open.
    """

    capabilities = Capabilities(
        same_machine=True, users=True, limits=frozenset(Limits._fields), queues=False, forwards_output=True
    )

    def __init__(self, setup: Setup) -> None:
        self._state_dir = setup.state_dir
        self._cgroup = setup.cgroup
        self._keep_for = setup.keep_for
        self._reports: Reports | None = None
        self._machine = SameMachine(self.processes)
        self._death_notice: dict[str, Any] = {"argv": [], "environment": {}, "text": ""}
        self.keeper_pid: int | None = None
        self._client: KeeperClient | None = None
        self._attaching = RLock()
        self._jobs: dict[str, _Tracked] = {}
        self._early: dict[str, Exit] | None = None
        """Ends that the keeper told together with the list of its jobs, while `open` waits for that."""

    def open(self, reports: Reports) -> list[Kept]:
        """Connect to the keeper that an earlier agent left, or start one (`Runner.open`)."""
        self._reports = reports
        self._early = {}
        self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._state_dir.chmod(0o700)
        with self._attaching:
            jobs = self._attach()
        early, self._early = self._early, None
        kept = [_kept(job) for job in jobs]
        kept = [replace(job, exit=early.get(job.job)) if job.exit is None else job for job in kept]
        self._jobs = {job.job: _Tracked(job.record, job.remove_on_loss, job.spawned, job.exit) for job in kept}
        return kept

    def hold(self, job: str, record: dict[str, Any], remove_on_loss: str | None) -> None:
        """See `Runner.hold`."""
        self._request("hold", job=job, record=record, sandbox=remove_on_loss, ended=None)
        self._jobs[job] = _Tracked(record, remove_on_loss)

    def spawn(self, spec: SpawnSpec, wait: float) -> Spawned:
        """See `Runner.spawn`. A start never waits."""
        before = self._jobs.get(spec.job)
        if before is not None and (before.starting or before.spawned is not None):
            raise Conflict(f"job '{spec.job}' was started already", job=spec.job)
        # Tracked before the keeper answers, because the job's end may be told in the same message as its start.
        tracked = self._jobs[spec.job] = _Tracked(spec.record, spec.remove_on_loss, starting=True)
        try:
            answer = self._request("spawn", **_spawn_arguments(spec))
        except Exception:
            del self._jobs[spec.job]
            if before is not None:
                self._jobs[spec.job] = before
            raise
        tracked.spawned, tracked.starting = Spawned(job=spec.job, **answer), False
        return tracked.spawned

    def update_record(self, job: str, record: dict[str, Any]) -> None:
        """See `Runner.update_record`."""
        self._tracked(job).record = record
        self._request("update", job=job, record=record)

    def signal(self, job: str, signum: int, *, tree: bool = True) -> None:
        """See `Runner.signal`."""
        self._request("signal", job=job, signum=signum, tree=tree)

    def kill(self, job: str) -> None:
        """See `Runner.kill`."""
        self._tracked(job)
        try:
            self._request("kill", job=job)
        except AgentUnavailable:
            # The keeper died meanwhile. The next one kills the processes that it left, and then answers.
            self._request("kill", job=job)

    def usage(self, job: str) -> Usage:
        """See `Runner.usage`."""
        return Usage(**self._request("usage", job=job))

    def processes(self, job: str) -> list[int]:
        """See `Runner.processes`."""
        pids: list[int] = self._request("processes", job=job)
        return pids

    def exiting(self, job: str) -> bool:
        """See `Runner.exiting`."""
        tracked = self._jobs.get(job)
        return tracked is not None and tracked.spawned is not None and is_exiting(tracked.spawned.pid)

    def listeners(self, job: str) -> Sockets:
        """See `Runner.listeners`."""
        return self._machine.listeners(job)

    def find(self, job: str, port: int) -> Address:
        """See `Runner.find`. What is known of a job's sockets saves a look at its processes."""
        self._tracked(job)
        return self._machine.find(job, port)

    def connect_at_once(self, job: str, address: Address) -> socket.socket | None:
        """See `Runner.connect_at_once`."""
        return self._machine.connect_at_once(job, address)

    def connect(self, job: str, address: Address, timeout: float, *, assigned: bool = False) -> socket.socket:
        """See `Runner.connect`."""
        self._tracked(job)
        return self._machine.connect(job, address, timeout, assigned=assigned)

    def forget(self, job: str) -> None:
        """See `Runner.forget`."""
        self._request("forget", job=job)
        self._jobs.pop(job, None)
        self._machine.forget(job)

    def leave_death_notice(self, argv: list[str], environment: dict[str, str], text: str) -> None:
        """See `Runner.leave_death_notice`."""
        self._death_notice = {"argv": argv, "environment": environment, "text": text}
        self._request("death_notice", **self._death_notice)

    def close(self, *, end_jobs: bool) -> None:
        """See `Runner.close`."""
        self._machine.close()
        with self._attaching:
            client, self._client = self._client, None
            if client is None:
                return
            ends = end_jobs or self._keep_for == 0
            if ends and not client.lost:
                try:
                    client.request("end")
                except KeeperLost as error:
                    log.warning("event=keeper_lost_while_ending error=%r", str(error))
            client.close(wait=ends)

    def _tracked(self, job: str) -> _Tracked:
        tracked = self._jobs.get(job)
        if tracked is None:
            raise NotFound(f"job '{job}' is not found", job=job)
        return tracked

    def _request(self, op: str, **arguments: Any) -> Any:
        job = arguments.get("job")
        with self._attaching:  # Every request waits here while a dead keeper is replaced.
            client = self._client
            if client is None or client.lost:
                client = self._replace(client)
        try:
            return client.request(op, **arguments)
        except KeeperRefusal as refusal:
            raise _ERRORS.get(refusal.code, PRouterError)(str(refusal), job=job) from None
        except ValueError as error:
            raise InvalidRequest(
                f"job '{job}' cannot be started: its request cannot be sent to the keeper: {error}", job=job
            ) from None
        except KeeperLost as error:
            raise _lost_keeper(error, job) from None

    def _attach(self) -> list[dict[str, Any]]:
        """Connect to the running keeper, or start one that ends the processes of a killed one; return its jobs."""
        client = KeeperClient.connect(self._state_dir, self._event, self._lost)
        if client is not None:
            try:
                return self._greet(client)
            except KeeperLost as error:
                log.info("event=keeper_ended_before_hello reason=%r", str(error))
        return self._start(remove_leftovers=True)

    def _start(self, *, remove_leftovers: bool) -> list[dict[str, Any]]:
        try:
            client = KeeperClient.start(
                self._state_dir,
                self._event,
                self._lost,
                remove_leftovers=remove_leftovers,
                cgroup=self._cgroup,
                # Jobs that outlive the agent keep the group divided, and systemd could not start the next agent in it.
                move=self._keep_for == 0,
            )
            return self._greet(client)
        except (OSError, KeeperLost) as error:
            raise AgentUnavailable(f"the keeper, which runs the jobs, cannot be started: {error}") from error

    def _greet(self, client: KeeperClient) -> list[dict[str, Any]]:
        try:
            answer = client.hello(keep_for=self._keep_for, timeout=_HELLO_TIMEOUT)
        except KeeperRefusal as refusal:
            client.close(wait=False)
            raise Conflict(f"{self._state_dir}: {refusal}") from None
        except KeeperLost:
            client.close(wait=False)
            raise
        if answer["protocol"] != PROTOCOL:
            log.warning("event=keeper_of_other_version protocol=%s jobs=%d", answer["protocol"], len(answer["jobs"]))
            client.request("end")
            client.close(wait=False)
            raise KeeperLost("its version is another")
        self._client, self.keeper_pid = client, answer["pid"]
        log.info("event=keeper_attached keeper_pid=%d jobs=%d", answer["pid"], len(answer["jobs"]))
        jobs: list[dict[str, Any]] = answer["jobs"]
        return jobs

    def _lost(self, client: KeeperClient) -> None:
        """Replace a keeper that died; runs in a greenlet of its own."""
        with self._attaching:
            if self._client is client:
                try:
                    self._replace(client)
                except PRouterError as error:
                    log.error("event=keeper_not_replaced error=%r", error.detail)

    def _replace(self, dead: KeeperClient | None) -> KeeperClient:
        """Start a new keeper, which ends the processes of the dead one; report the end of all jobs that ran."""
        if dead is None:
            raise AgentUnavailable("the runner is closed")
        log.error("event=keeper_lost jobs=%d", len(self._jobs))
        self._start(remove_leftovers=False)
        dead.close(wait=True)
        client = self._client
        assert client is not None, "a keeper that was started is attached"
        for job, tracked in list(self._jobs.items()):
            if tracked.spawned is not None and tracked.exit is None:
                self._ended(Exit(job, None, None, Reason.AGENT_LOST.value, 0.0, 0, time()))
        try:
            self._hand_over(client)
        except KeeperLost as error:
            raise _lost_keeper(error) from None
        return client

    def _hand_over(self, client: KeeperClient) -> None:
        """Tell a new keeper what the lost one held. Raises `KeeperLost`: the next request starts another."""
        client.request("death_notice", **self._death_notice)
        for job, tracked in list(self._jobs.items()):
            if tracked.starting:
                continue
            kept = asdict(tracked.exit) if tracked.exit is not None else None
            try:
                client.request("hold", job=job, record=tracked.record, sandbox=tracked.remove_on_loss, ended=kept)
            except KeeperRefusal as refusal:  # On a full disk. The other jobs must not be lost, too.
                log.error("event=job_not_handed_over job=%s error=%r", job, str(refusal))

    def _event(self, message: dict[str, Any]) -> None:
        end = Exit(**message["exit"])
        if self._early is not None:
            self._early[end.job] = end
        else:
            self._ended(end)

    def _ended(self, end: Exit) -> None:
        tracked = self._jobs.get(end.job)
        if tracked is not None:
            tracked.exit = end
            self._machine.forget(end.job)
            gevent.spawn(self._notify, end)

    def _notify(self, end: Exit) -> None:
        try:
            assert self._reports is not None, "the runner is open"
            self._reports.exited(end)
        except Exception:
            log.exception("event=exit_not_reported job=%s", end.job)


def _lost_keeper(error: KeeperLost, job: str | None = None) -> AgentUnavailable:
    return AgentUnavailable(
        f"the keeper, which runs the jobs, was lost: {error}; the agent starts another", job=job, retry_after=1
    )


_ERRORS: dict[str, type[PRouterError]] = {
    "start_failed": StartFailed,
    "unknown_job": NotFound,
    "not_running": Conflict,
    "conflict": Conflict,
    "invalid": InvalidRequest,
    "no_space": NoSpace,
    "unavailable": AgentUnavailable,
}


def _spawn_arguments(spec: SpawnSpec) -> dict[str, Any]:
    return {
        "job": spec.job,
        "argv": spec.argv,
        "env": spec.env,
        "cwd": spec.cwd,
        "stdout": spec.stdout,
        "stderr": spec.stderr,
        "limits": spec.limits._asdict(),
        "record": spec.record,
        "sandbox": spec.remove_on_loss,
        # Only if there is one: a keeper of an earlier version refuses the word, and must not start such a job.
        **({"user": spec.user._asdict()} if spec.user is not None else {}),
    }


def _kept(job: dict[str, Any]) -> Kept:
    return Kept(
        job=job["job"],
        record=job["record"],
        remove_on_loss=job["sandbox"],
        spawned=Spawned(job=job["job"], **job["spawned"]) if job["spawned"] else None,
        exit=Exit(**job["exit"]) if job["exit"] else None,
    )
