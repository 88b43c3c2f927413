"""Stacks: each way from a client to the fast job server, started in a directory of its own and always cleaned up.

``direct`` is the job server itself; ``nginx`` and ``chp`` (configurable-http-proxy) stand in front of that same
process; ``prouter1`` and ``prouter2`` are a router with one or two workers, an agent, and the job server as a job. The
agent links over tcp; that of ``prouter2ipc`` links through the router's unix socket, that of ``prouter2curve`` over tcp
with CURVE.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench import processes
from tests.bench.client import BadAnswer, Connection
from tests.bench.nginx import Nginx
from tests.bench.processes import MARK, Process
from tests.support.ports import free_port

__all__ = ["LINKS", "NAMES", "OTHER_LINKS", "Chp", "Direct", "NginxStack", "Prouter", "Stack", "StackFailed", "running"]

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".bench"
FAST_SERVER = ROOT / "tests" / "jobs" / "fast_server.py"
CHP_VERSION = "5.3.0"
NAMES = ("direct", "nginx", "chp", "prouter1", "prouter2")
LINKS = ("tcp", "ipc", "curve")
OTHER_LINKS = ("prouter2ipc", "prouter2curve")
"""Stacks that are measured when asked for by name."""


class StackFailed(Exception):
    """A stack did not start; the text holds the output of its processes."""


def wait_for(what: str, condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until `condition` holds.

    Raises:
        StackFailed: it did not in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise StackFailed(f"{what}: not within {seconds} s")
        time.sleep(0.02)


class Stack:
    """Processes in a directory, and the address where the job server is reached through them.

    Attributes:
        address: ``(host, port)`` for clients.
        prefix: in front of the job server's paths, without a trailing slash.
    """

    name = ""
    title = ""
    address: tuple[str, int]
    prefix = ""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self.directory = Path(tempfile.mkdtemp(prefix="prb-"))
        self.environ = {**os.environ, MARK: self.mark}
        self.job: Stack | None = None
        self._children: list[subprocess.Popen[bytes]] = []

    def processes(self) -> list[Process]:
        """Return all live processes of this stack, with the job server behind it."""
        return processes.find(self.mark, self.directory) + (self.job.processes() if self.job else [])

    def start(self, name: str, *command: str | Path) -> Path:
        """Start a process; returns the file its stdout goes to (stderr beside it)."""
        out = self.directory / f"{name}.out"
        with out.open("wb") as stdout, (self.directory / f"{name}.err").open("wb") as stderr:
            child = subprocess.Popen(
                [os.fspath(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=self.environ,
                cwd=ROOT,
                start_new_session=True,
            )
        self._children.append(child)
        return out

    def await_line(self, out: Path, pattern: str) -> re.Match[str]:
        """Wait until a process prints a line.

        Raises:
            StackFailed: it ended, or 30 s passed.
        """
        deadline = time.monotonic() + 30
        child = self._children[-1]
        while True:
            ended = child.poll() is not None
            if found := re.search(pattern, out.read_text(), re.MULTILINE):
                return found
            if ended or time.monotonic() > deadline:
                said = out.with_suffix(".err").read_text()[-3000:]
                raise StackFailed(
                    f"{self.name}: no line {pattern!r} (status {child.poll()})\n{out.read_text()}\n{said}"
                )
            time.sleep(0.02)

    def close(self) -> None:
        """End every process and remove the directory."""
        for child in reversed(self._children):
            if child.poll() is None:
                child.terminate()
        processes.end(self.mark, self.directory, grace=8.0)
        for child in self._children:
            child.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def connect(self, **options: float) -> Connection:
        """Open a client connection."""
        return Connection(self.address, timeout=options.get("timeout", 60.0))


class Direct(Stack):
    """The job server itself."""

    name, title = "direct", "job server"

    def launch(self) -> None:
        """Start it."""
        out = self.start("job", sys.executable, FAST_SERVER, "0")
        self.address = ("127.0.0.1", int(self.await_line(out, r"^listening .*:(\d+)$")[1]))


class NginxStack(Stack):
    """nginx with the shipped configuration, in front of `job`."""

    name, title = "nginx", "nginx"

    def launch(self, job: Stack) -> None:
        """Start it."""
        self.job = job
        self.address = ("127.0.0.1", free_port())
        prefix = self.directory / "nginx"
        self._nginx = Nginx(prefix, f"127.0.0.1:{job.address[1]}", self.address[1], environ=self.environ)

    def close(self) -> None:
        """End nginx, then the rest."""
        if hasattr(self, "_nginx"):
            self._nginx.close()
        super().close()


class Chp(Stack):
    """configurable-http-proxy, in front of `job`; installed with npm on first use."""

    name, title = "chp", "configurable-http-proxy"

    def launch(self, job: Stack) -> None:
        """Start it."""
        self.job = job
        port, api = free_port(), free_port()
        target = f"http://127.0.0.1:{job.address[1]}"
        listen = ("--ip", "127.0.0.1", "--port", str(port), "--api-ip", "127.0.0.1", "--api-port", str(api))
        self.start("chp", "node", install_chp(), *listen, "--default-target", target, "--log-level", "warn")
        self.address = ("127.0.0.1", port)
        wait_for("configurable-http-proxy", lambda: answers(self.address))


class Prouter(Stack):
    """A router, an agent, and the job server as a job.

    Args:
        workers: of the router.
        job: whether to start the agent and the job server.
        link: how the agent links, one of `LINKS`.
    """

    def __init__(self, workers: int, *, job: bool = True, link: str = "tcp") -> None:
        super().__init__()
        self.link = link
        self.name = f"prouter{workers}{'' if link == 'tcp' else link}"
        self.title = f"pRouter, {workers} worker{'s' if workers > 1 else ''}{'' if link == 'tcp' else f', {link}'}"
        self.workers = workers
        self.with_job = job
        self.agents_endpoint = ""
        self.agent_uid = ""

    def prouter(self, name: str, *settings: str, options: tuple[str, ...] = ()) -> Path:
        """Start a ``prouter`` command with these settings."""
        sets = [word for setting in settings for word in ("--set", setting)]
        return self.start(name, sys.executable, "-m", "prouter", name, *options, *sets)

    def launch(self) -> None:
        """Start router, agent and job."""
        self.environ["PYTHONPATH"] = str(ROOT)
        self.launch_router()
        if self.with_job:
            self._launch_agent()
            self._launch_job()

    def launch_router(self, *settings: str, control_port: int = 0, agents_port: int = 0) -> None:
        """Start the router alone; on free ports, unless some are given."""
        ready = self.prouter(
            "up",
            f"control.port={control_port}",
            f"server.port={agents_port}",
            *settings,
            f"state.dir={str(self.directory / 'router')!r}",
            f"state.run_dir={str(self.directory / 'run')!r}",
            f"server.curve={str(self.link == 'curve').lower()}",
            options=("--workers", str(self.workers)),
        )
        found = self.await_line(ready, r"^ready control=http://([\w.]+):(\d+) agents=(\S+)$")
        self.address = (found[1], int(found[2]))
        self.agents_endpoint = found[3]

    def _launch_agent(self) -> None:
        address = self.agents_endpoint.removeprefix("tcp://")
        if self.link == "ipc":
            address = f"ipc://{self.directory / 'run' / 'agents.sock'}"
        key = str(self.directory / "router" / "keys" / "router.key")
        ready = self.prouter(
            "agent",
            f"client.address={address!r}",
            *([f"client.router_key={key!r}"] if self.link == "curve" else []),
            f"state.dir={str(self.directory / 'agent')!r}",
            f"jobs.root={str(self.directory / 'jobs')!r}",
        )
        self.agent_uid = self.await_line(ready, r"^ready agent=(\S+)")[1]

    def _launch_job(self) -> None:
        with contextlib.closing(self.connect()) as http:
            job = http.post("/jobs/create", {"name": "bench", "agent": {"type": "uid", "uid": self.agent_uid}})
            start = {
                "args": [sys.executable, str(FAST_SERVER), "{port}"],
                "env": {},
                "expose": {"port": "assign", "path": "strip", "ready": "tcp"},
            }
            http.post(f"{job['path']}/start", start)
        self.prefix = f"{job['path']}/http"
        wait_for("the job", lambda: answers(self.address, f"{self.prefix}/"))

    def create_job(self, http: Connection, name: str = "bench") -> str:
        """Create an empty job on this stack's agent; return its path."""
        answer = http.post("/jobs/create", {"name": name, "agent": {"type": "uid", "uid": self.agent_uid}})
        return str(answer["path"])


def answers(address: tuple[str, int], target: str = "/") -> bool:
    """Whether a GET is answered with 200."""
    try:
        with contextlib.closing(Connection(address, timeout=5.0)) as http:
            return http.request("GET", target).status == 200
    except (OSError, BadAnswer):
        return False


def install_chp() -> Path:
    """The proxy's script, installed into the checkout's cache directory when it is not there yet.

    Raises:
        StackFailed: node or npm is missing, or the installation failed.
    """
    script = CACHE / "node_modules" / "configurable-http-proxy" / "bin" / "configurable-http-proxy"
    if script.exists():
        return script
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise StackFailed("node and npm are needed for configurable-http-proxy")
    CACHE.mkdir(exist_ok=True)
    (CACHE / ".gitignore").write_text("*\n")
    package = f"configurable-http-proxy@{CHP_VERSION}"
    command = ["npm", "install", "--no-fund", "--no-audit", "--prefix", str(CACHE), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not script.exists():
        raise StackFailed(f"npm install failed:\n{done.stderr[-2000:]}")
    return script


@contextlib.contextmanager
def running(names: tuple[str, ...], report: Callable[[str], None]) -> Iterator[dict[str, Stack]]:
    """The stacks with these names, started; one that does not come up is reported and left out.

    Args:
        names: out of `NAMES` and `OTHER_LINKS`.
        report: is told why a stack is missing.

    Raises:
        StackFailed: the job server itself does not run.
    """
    with contextlib.ExitStack() as cleanup:
        started: dict[str, Stack] = {}
        direct = Direct()
        cleanup.callback(direct.close)
        direct.launch()
        makers: dict[str, Callable[[], Stack]] = {
            "nginx": NginxStack,
            "chp": Chp,
            "prouter1": lambda: Prouter(1),
            "prouter2": lambda: Prouter(2),
            "prouter2ipc": lambda: Prouter(2, link="ipc"),
            "prouter2curve": lambda: Prouter(2, link="curve"),
        }
        for name in (*NAMES, *OTHER_LINKS):
            if name not in names:
                continue
            if name == "direct":
                started[name] = direct
                continue
            stack = makers[name]()
            cleanup.callback(stack.close)
            try:
                launch(stack, direct)
            except Exception as error:  # the edge of a stack: others are measured without it
                report(f"{name} is left out: {error}")
            else:
                started[name] = stack
        yield started


def launch(stack: Stack, direct: Direct) -> None:
    """Start any stack."""
    if isinstance(stack, (NginxStack, Chp)):
        stack.launch(direct)
    elif isinstance(stack, (Direct, Prouter)):
        stack.launch()
