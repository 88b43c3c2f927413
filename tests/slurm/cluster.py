"""A real Slurm cluster for tests: munged, slurmctld and a few slurmd of this machine, in a directory of their own.

Debian's slurmd is not built for several per machine, but takes a made-up host name for each node. All daemons listen on
loopback, on ports that were free. Several clusters can run at once, as root or as an ordinary user. A cluster whose
test was killed is cleaned up by its reaper (`tests.slurm.reaper`).
"""

from __future__ import annotations

import os
import pwd
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.slurm.reaper import MARK
from tests.support.processes import wait_until
from tests.support.programs import needed, program

__all__ = ["NEEDS_SLURM", "Cluster", "Daemon", "running_cluster"]

NEEDS_SLURM = needed("munged", "slurmctld", "slurmd", "sbatch")
"""Mark for tests that need Slurm's programs."""

CPUS, MEMORY = 4, 16000
"""Of each node, as Slurm is told; the machine may have less."""
_START_DEADLINE = 60.0
_TRIES = 3
_LOWEST_PORT = 10000


class Daemon:
    """One daemon of a cluster, which a test may kill and start again."""

    def __init__(self, name: str, argv: list[str], root: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self._argv = argv
        self._root = root
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._root / "log" / f"{self.name}.out").open("ab") as log:
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self._environment),
                cwd=self._root,
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def end(self, signum: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal and wait for the end."""
        assert self._process is not None
        self._process.send_signal(signum)
        self._process.wait(20)

    def pause(self) -> None:
        """Stop it (SIGSTOP), so that its clients wait in vain."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def tail(self) -> str:
        texts = [path.read_text(errors="replace") for path in sorted((self._root / "log").glob(f"{self.name}.*"))]
        return "\n".join("\n".join(texts).splitlines()[-15:])


class Cluster:
    """A running cluster.

    Attributes:
        root: its directory, which is deleted at the end.
        shared: a directory for jobs, which every "node" has.
        environment: what Slurm's commands need: PATH and SLURM_CONF, and nothing of a surrounding Slurm.
    """

    def __init__(self, root: Path, nodes: int, cpus: int, settings: Mapping[str, str]) -> None:
        self.root = root
        self.shared = root / "shared"
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        self.environment["SLURM_CONF"] = str(root / "slurm.conf")
        self.environment["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
        for name in ("munge", "state", "spool", "log", "shared"):
            (root / name).mkdir(exist_ok=True)
        key = root / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        _write_configuration(root, self.nodes, cpus, settings)
        own = {**self.environment, MARK: str(root)}
        self.munged = Daemon("munged", _munged(root), root, own)
        self.controller = Daemon("slurmctld", [program("slurmctld") or "", "-D"], root, own)
        self.daemons = {
            name: Daemon(name, [program("slurmd") or "", "-D", "-N", name], root, own) for name in self.nodes
        }

    def start(self) -> None:
        """Start all daemons; return once all nodes are idle."""
        self.munged.start()
        self._await(lambda: (self.root / "munge" / "socket").is_socket(), self.munged)
        self.controller.start()
        for daemon in self.daemons.values():
            daemon.start()
        every = [self.controller, *self.daemons.values()]
        self._await(lambda: self._states() == ["idle"] * len(self.nodes), *every)

    def run(self, *argv: str, check: bool = True) -> str:
        """Run one of Slurm's commands; return its stdout without the last newline."""
        done = subprocess.run(
            argv, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=40
        )
        assert not check or done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout.rstrip("\n")

    def restart(self, daemon: Daemon) -> None:
        """Start a daemon that was ended; return once it works."""
        daemon.start()
        if daemon is self.controller:
            self._await(lambda: "is UP" in self.run("scontrol", "ping", check=False), daemon)

    def jobs(self) -> list[str]:
        """The ids of all jobs that have not ended."""
        return self.run("squeue", "-h", "-o", "%i").split()

    def _states(self) -> list[str]:
        return self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%T", check=False).split()

    def _await(self, condition: Callable[[], bool], *daemons: Daemon) -> None:
        def reached() -> bool:
            for daemon in daemons:
                if not daemon.alive:
                    raise AssertionError(f"{daemon.name} ended:\n{daemon.tail()}")
            return condition()

        wait_until(reached, _START_DEADLINE, f"{daemons[-1].name} works: {daemons[-1].tail()}")


@contextmanager
def running_cluster(nodes: int = 2, cpus: int = CPUS, **settings: str) -> Iterator[Cluster]:
    """Start a cluster and end it, with all its jobs, afterwards.

    Args:
        cpus: of each node, as Slurm is told.
        settings: lines of slurm.conf, such as ``MinJobAge="5"``.
    """
    for left in reversed(range(_TRIES)):
        root = Path(tempfile.mkdtemp(prefix="prouter-slurm-"))
        root.chmod(0o755)
        reaper = subprocess.Popen(
            [sys.executable, "-m", "tests.slurm.reaper", str(root)],
            stdin=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )
        try:
            cluster = Cluster(root, nodes, cpus, settings)
            try:
                cluster.start()
            except AssertionError as error:
                if left and "in use" in str(error):
                    continue  # Another program took a port meanwhile.
                raise
            yield cluster
            return
        finally:
            reaper.communicate()


def _munged(root: Path) -> list[str]:
    base = root / "munge"
    return [
        program("munged") or "",
        "--foreground",
        "--force",
        "--num-threads=2",
        f"--key-file={base}/key",
        f"--socket={base}/socket",
        f"--pid-file={base}/pid",
        f"--log-file={root}/log/munged.log",
        f"--seed-file={base}/seed",
    ]


def _free_ports(count: int) -> list[int]:
    """Ports that are free now, below those that the kernel gives to clients."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    top = low if low > _LOWEST_PORT + 2000 else 65000
    held: list[socket.socket] = []
    try:
        while len(held) < count:
            one = socket.socket()
            try:
                one.bind(("127.0.0.1", random.randrange(_LOWEST_PORT, top)))
            except OSError:
                one.close()
                continue
            held.append(one)
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def _write_configuration(root: Path, nodes: list[str], cpus: int, settings: Mapping[str, str]) -> None:
    ports = _free_ports(len(nodes) + 1)
    user = pwd.getpwuid(os.geteuid()).pw_name
    lines = {
        "ClusterName": "test",
        "SlurmctldHost": f"{socket.gethostname().split('.')[0]}(127.0.0.1)",
        "SlurmctldPort": str(ports[0]),
        "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",
        "SlurmUser": user,
        "SlurmdUser": user,
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={root}/munge/socket",
        "CredType": "cred/munge",
        "StateSaveLocation": f"{root}/state",
        "SlurmdSpoolDir": f"{root}/spool/%n",
        "SlurmctldPidFile": f"{root}/state/slurmctld.pid",
        "SlurmdPidFile": f"{root}/spool/%n.pid",
        "SlurmctldLogFile": f"{root}/log/slurmctld.log",
        "SlurmdLogFile": f"{root}/log/%n.log",
        "MailProg": "/bin/true",
        # Neither control groups nor binding to processors: both need rights that a test may not have.
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "MpiDefault": "none",
        "SwitchType": "switch/none",
        "SlurmdParameters": "config_overrides",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core_Memory",
        "DefMemPerCPU": "100",
        "JobAcctGatherType": "jobacct_gather/linux",
        "JobAcctGatherFrequency": "task=1",
        "JobAcctGatherParams": "OverMemoryKill",
        "AccountingStorageType": "accounting_storage/none",
        "SchedulerType": "sched/backfill",
        "SchedulerParameters": "bf_interval=1,sched_interval=2,batch_sched_delay=0",
        "KillWait": "5",
        "SlurmdTimeout": "10",
        "SlurmctldTimeout": "30",
        "MinJobAge": "300",
        "ReturnToService": "2",
        "CompleteWait": "0",
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        **settings,
    }
    text = [f"{name}={value}" for name, value in lines.items()]
    for name, port in zip(nodes, ports[1:], strict=True):
        text.append(
            f"NodeName={name} NodeHostname=host-{name} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} "
            f"RealMemory={MEMORY} State=UNKNOWN"
        )
        (root / "spool" / name).mkdir(exist_ok=True)
    every = f"Nodes={','.join(nodes)}"
    text += [
        f"PartitionName=main {every} Default=YES PriorityTier=10 PreemptMode=OFF",
        f"PartitionName=short {every} MaxTime=1 PriorityTier=10 PreemptMode=OFF",
        f"PartitionName=scavenge {every} PriorityTier=1 PreemptMode=CANCEL",
        f"PartitionName=urgent {every} PriorityTier=100 PreemptMode=OFF",
    ]
    (root / "slurm.conf").write_text("\n".join(text) + "\n")
