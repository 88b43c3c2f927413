"""The runner for Slurm: jobs are batch jobs, and reached through their nodes' connections to the agent.

This module is the interface. `starts` submits jobs, `ends` finds out how they ended and ends them, `follower` looks at
Slurm's queue, and `nodes` serves the connections.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import secrets
import signal
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent

from prouter.config.errors import ConfigError
from prouter.errors import AgentUnavailable, Conflict, InvalidRequest, PRouterError
from prouter.keeper.journal import remove_sandbox
from prouter.processes.limits import Limits
from prouter.runners.capabilities import Capabilities
from prouter.runners.interface import Kept, Queued, Reports, Runner, Spawned, SpawnSpec, Usage
from prouter.runners.kinds import Setup
from prouter.runners.slurm import commands, shipping
from prouter.runners.slurm.certificate import Certificate
from prouter.runners.slurm.controller import Controller
from prouter.runners.slurm.ends import Ends
from prouter.runners.slurm.follower import Follower
from prouter.runners.slurm.job import JobState
from prouter.runners.slurm.listener import Listener, reachable_addresses
from prouter.runners.slurm.node import job_files
from prouter.runners.slurm.nodes import Nodes
from prouter.runners.slurm.options import SlurmOptions, requested, sbatch_options
from prouter.runners.slurm.reclaiming import reclaim
from prouter.runners.slurm.starts import Starts
from prouter.runners.slurm.table import Table
from prouter.runners.sockets import Address, Sockets
from prouter.runners.sockets import Listener as ListeningSocket

__all__ = ["SlurmRunner"]

_SIGNALLED = 10.0
"""Seconds that a node has to pass on a signal."""

_log = logging.getLogger("prouter.runner")


class SlurmRunner(Runner):
    """Runs jobs on a Slurm cluster.

    Args:
        setup: see `Setup`; its options are `SlurmOptions`.
    """

    capabilities = Capabilities(
        same_machine=False,
        users=False,
        limits=frozenset({"memory", "cpu_seconds", "open_files", "processes"}),
        queues=True,
        outlives_agent=True,
        forwards_output=False,
    )

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._options: SlurmOptions = setup.options or SlurmOptions()
        reserves = frozenset({"cpus", "memory", "gpus", *self._options.licenses})
        self.capabilities = replace(self.capabilities, reserves=reserves)
        self._shared = _shared_directory(self._options, setup.jobs_root)
        self._host, self._port = _listen_address(self._options.listen)
        self._lock = -1
        self._table = Table(self._shared / "jobs")
        self._controller = Controller(self._options.command_timeout)
        self._listener: Listener | None = None

    def open(self, reports: Reports) -> list[Kept]:
        """See `Runner.open`. Slurm itself is asked later: it may be away."""
        self._setup.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._take_lock()
        try:
            self._shared.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._shared / "jobs").mkdir(mode=0o700, exist_ok=True)
            certificate = Certificate(self._setup.state_dir)
            agent = _agent_tag(self._shared)
            code = shipping.install(self._shared)
        except OSError as error:
            raise AgentUnavailable(f"the shared directory {self._shared} cannot be used: {error}") from error
        self._table.open(reports)
        self._follower = Follower(
            self._controller, agent, self._options.poll, lambda: self._table, self._observe, self._stray
        )
        self._starts = Starts(self._table, self._controller, self._follower, self._options, agent=agent, code=code)
        self._ends = Ends(self._table, self._controller, self._follower, self._starts, agent)
        self._nodes = Nodes(self._table, self._follower, self._starts, self._ends, reports)
        kept = reclaim(self._table, self._ends, self._shared / "jobs")
        self._listen(certificate)
        self._follower.start()
        return kept

    def check(self, limits: Limits, resources: Mapping[str, float], options: Mapping[str, Any]) -> None:
        """See `Runner.check`."""
        try:
            sbatch_options(self._options, *requested(resources, options), memory_limit=limits.memory)
        except ValueError as error:
            raise InvalidRequest(f"Invalid request: {error}") from None

    def hold(self, job: str, record: dict[str, Any], remove_on_loss: str | None) -> None:
        """See `Runner.hold`."""
        if self._table.get(job) is not None:
            raise Conflict(f"the runner knows job '{job}' already", job=job)
        held = self._table.add(job, record, remove_on_loss)
        try:
            self._table.files(os.makedirs, str(held.directory), 0o700, True)
            self._table.store(held, job_files.RECORD, {"record": record, "sandbox": remove_on_loss})
        except OSError as error:
            self._table.drop(held)
            # Else the next agent would find a job that nobody has.
            self._table.files(lambda: job_files.clear(str(held.directory), everything=True))
            raise AgentUnavailable(f"the job cannot be written to {held.directory}: {error}", job=job) from error

    def spawn(self, spec: SpawnSpec, wait: float) -> Spawned | Queued:
        """See `Runner.spawn`."""
        if self._table.get(spec.job) is None:
            self.hold(spec.job, spec.record, spec.remove_on_loss)
        return self._starts.start(self._table.find(spec.job), spec, wait)

    def update_record(self, job: str, record: dict[str, Any]) -> None:
        """See `Runner.update_record`."""
        found = self._table.find(job)
        found.record = record
        try:
            self._table.store(found, job_files.RECORD, {"record": record, "sandbox": found.sandbox})
        except OSError as error:
            raise AgentUnavailable(f"the job cannot be written to {found.directory}: {error}", job=job) from error

    def signal(self, job: str, signum: int, *, tree: bool = True) -> None:
        """See `Runner.signal`."""
        found = self._table.find(job)
        link = self._nodes.link(found)
        found.signalled = found.signalled or signum in (signal.SIGTERM, signal.SIGKILL)
        link.request("signal", timeout=_SIGNALLED, signum=signum, tree=tree)

    def kill(self, job: str) -> None:
        """See `Runner.kill`."""
        self._ends.kill(self._table.find(job))

    def usage(self, job: str) -> Usage:
        """See `Runner.usage`."""
        return Usage(**self._nodes.link(self._table.find(job)).request("usage"))

    def processes(self, job: str) -> list[int]:
        """See `Runner.processes`."""
        pids: list[int] = self._nodes.link(self._table.find(job)).request("processes")
        return pids

    def listeners(self, job: str) -> Sockets:
        """See `Runner.listeners`."""
        told = self._nodes.link(self._table.find(job)).request("listeners")
        own, foreign = ([ListeningSocket(*one) for one in told[name]] for name in ("own", "foreign"))
        return Sockets(own, foreign, told["hidden"], frozenset(told["hidden_uids"]), frozenset(told["pids"]))

    def connect(self, job: str, address: Address, timeout: float, *, assigned: bool = False) -> socket.socket:
        """See `Runner.connect`."""
        return self._nodes.link(self._table.find(job)).connect(address, timeout, assigned=assigned)

    def forget(self, job: str) -> None:
        """See `Runner.forget`."""
        found = self._table.find(job)
        if found.state not in (JobState.HELD, JobState.ENDED):
            raise Conflict(f"job '{job}' is running or waits; end it before it is dropped", job=job)
        self._table.drop(found)
        with found.files:
            self._table.files(lambda: job_files.clear(str(found.directory), everything=True))

    def close(self, *, end_jobs: bool) -> None:
        """See `Runner.close`."""
        if self._lock < 0:
            return
        if end_jobs:
            gevent.joinall([gevent.spawn(self._end, job.uid) for job in self._table])
        self._follower.close()
        if self._listener is not None:
            self._listener.close()
        self._table.close()
        self._controller.close()
        os.close(self._lock)
        self._lock = -1

    def _end(self, uid: str) -> None:
        job = self._table.find(uid)
        try:
            self._ends.kill(job)
        except PRouterError as error:
            _log.error("event=job_not_ended job=%s error=%r", uid, error.detail)
            return
        if job.sandbox is not None:
            self._table.files(remove_sandbox, job.sandbox, _log_line)
        self._table.files(lambda: job_files.clear(str(job.directory), everything=True))

    def _observe(self, *seen: Any) -> None:
        self._ends.observe(*seen)

    def _stray(self, entry: Any) -> None:
        self._ends.stray(entry)

    def _take_lock(self) -> None:
        self._lock = os.open(self._setup.state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            self._lock = -1
            raise Conflict(f"{self._setup.state_dir}: another agent uses this state directory") from None

    def _listen(self, certificate: Certificate) -> None:
        """Listen for nodes, on the port of the earlier agent if that is free, and tell them where."""
        earlier = job_files.read(str(self._shared), job_files.AGENT)
        self._listener = Listener(certificate.context(), self._nodes.secret_of, self._nodes.serve)
        ports = [self._port] if self._port or earlier is None else [earlier["addresses"][0][1], 0]
        for port in ports:
            try:
                bound = self._listener.open(self._host, port)
                break
            except OSError as error:
                if port == ports[-1]:
                    raise ConfigError(f"jobs.slurm.listen: {self._host} port {port}: {error.strerror}") from error
        self._publish(certificate, bound, [])
        if self._options.address is None:
            gevent.spawn(self._add_addresses, certificate, bound)

    def _add_addresses(self, certificate: Certificate, port: int) -> None:
        """Tell nodes also this machine's address towards Slurm's controller, once that has said where it is."""
        try:
            hosts = commands.parse_controllers(self._controller.look(commands.configuration()).stdout)
        except AgentUnavailable as error:
            _log.info("event=controller_unknown error=%r", error.detail)
            return
        self._publish(certificate, port, hosts)

    def _publish(self, certificate: Certificate, port: int, controllers: list[str]) -> None:
        hosts = [self._options.address] if self._options.address else reachable_addresses(controllers)
        content = {"addresses": [[host, port] for host in hosts], "certificate": certificate.public}
        self._table.files(job_files.write, str(self._shared), job_files.AGENT, content)
        _log.info("event=nodes_served port=%d addresses=%r", port, ",".join(hosts))


def _shared_directory(options: SlurmOptions, jobs_root: Path) -> Path:
    if options.shared is None:
        return jobs_root.with_name(f"{jobs_root.name}.slurm")
    # Agents may share one setting.
    return Path(options.shared).absolute() / hashlib.sha256(os.fsencode(jobs_root)).hexdigest()[:12]


def _listen_address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"jobs.slurm.listen: must be ADDRESS:PORT, for example 10.0.0.1:0, not {text!r}")
    return host.strip("[]"), int(port)


def _agent_tag(shared: Path) -> str:
    """The tag of this agent's jobs in Slurm's queue, made once."""
    content = job_files.read(str(shared), "tag.json")
    if content is None:
        content = {"tag": secrets.token_hex(4)}
        job_files.write(str(shared), "tag.json", content)
    return str(content["tag"])


def _log_line(level: str, text: str) -> None:
    _log.log(logging.getLevelName(level.upper()), "%s", text)
