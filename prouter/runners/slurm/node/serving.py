"""One job on its node, from its start to its end.

The keeper runs it. This program tells the agent what happens, carries out the agent's requests, and writes down how the
job ended before it says so. Slurm ends jobs by signals to all their processes, this one included.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import time
from typing import Any

from prouter.keeper.trees import signal_name
from prouter.runners.slurm.node import job_files
from prouter.runners.slurm.node.agent_link import AgentLink
from prouter.runners.slurm.node.dialling import Refused, dial
from prouter.runners.slurm.node.keeper_process import KeeperLost, KeeperProcess, Refusal
from prouter.runners.slurm.node.keeper_start import begin
from prouter.runners.slurm.node.notes import note
from prouter.runners.slurm.node.own_sockets import OwnSockets
from prouter.runners.slurm.node.relays import serve as serve_relay
from prouter.runners.slurm.node.reports import ReportEndpoint
from prouter.runners.slurm.node.surroundings import environment, node_name

__all__ = ["serve"]

_TELL = 5.0
"""Seconds for which the end of the job may be told to an agent that is connected; after that, the file has to do."""
_STORE = 120.0
_STORE_PAUSE = 1.0
"""Seconds for which a job's end is tried to be written if no agent has taken it, and between attempts."""
_REPORT = 10.0
"""Seconds for which a report of a port waits for the agent."""
_PASSED_ON = frozenset({"signal", "kill", "usage", "processes"})
"""Requests for the keeper."""
_TAKEN = (errno.EADDRINUSE, errno.EACCES)
_NOT_STARTED = 3
"""Exit code for Slurm if the job is another batch job's."""
_UNKNOWN: dict[str, Any] = {"exit_code": None, "signal": None, "cpu_seconds": 0.0, "max_rss": 0}


class Superseded(Exception):
    """The job is not this batch job's any more: the agent took it back, or gave it to another one."""


class Node:
    """The job's node.

    Args:
        directory: the job's, shared with the agent.
        job: content of ``job.json``, and the ``claim`` that this node has made.
        state_dir: the keeper's.
    """

    def __init__(self, directory: str, job: dict[str, Any], state_dir: str) -> None:
        self._directory = directory
        self._job = job
        self._state_dir = state_dir
        self._uid: str = job["spec"]["job"]
        self._spawned: dict[str, Any] | None = None
        self._stored_spawned: dict[str, Any] | None = None
        self._exit: dict[str, Any] | None = None
        self._stored = False
        self._ended = asyncio.Event()
        self._asked_to_end = False
        self._keeper: KeeperProcess | None = None
        self._sockets = OwnSockets(self._processes)
        self._tasks: set[asyncio.Task[None]] = set()
        self._reports: dict[int, asyncio.Future[str]] = {}
        self._link = AgentLink(
            directory, hello=self._hello, serve=self._serve, refused=self._refused, linked=self._store_spawned
        )

    async def run(self, keeper: tuple[int, socket.socket]) -> int:
        """Run the job to its end; return the exit code for Slurm."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._on_term)
        self._keeper = KeeperProcess(*keeper, self._on_event, self._on_lost)
        linking = asyncio.create_task(self._link.run())
        try:
            await self._start()
        except Superseded as error:
            note(f"the job is not started here: {error}")
            linking.cancel()
            await self._keeper.end()
            job_files.withdraw(self._directory, self._job["claim"])
            return _NOT_STARTED
        await self._ended.wait()
        assert self._exit is not None
        told = self._link.connected
        self._link.send({"event": "exited", "exit": self._exit})
        # The agent disconnects once it knows the end.
        try:
            await asyncio.wait_for(self._link.flush(), _TELL)
        except asyncio.TimeoutError:
            told = False
            note("the agent was not told of the job's end; it will read it")
        if not told:
            await self._store_end()
        linking.cancel()
        await self._keeper.end()
        return _exit_code(self._exit)

    async def _start(self) -> None:
        """Start the job. Raises `Superseded`."""
        assert self._keeper is not None
        spec = self._job["spec"]
        variables = environment(self._job)
        port = self._job["port"]
        if port is not None and not _is_free(port):
            self._over({**_UNKNOWN, "reason": "port_taken", "text": f"port {port} is taken on {node_name()}"})
            return
        try:
            if self._job["report_variable"] is not None:
                variables[self._job["report_variable"]] = await ReportEndpoint(self._uid, self._report).open()
            await self._keeper.open()
            self._begin()
            arguments = {**spec, "env": variables, "record": {}, "sandbox": None, "copies": self._job["sandbox"]}
            spawned = await self._keeper.request("spawn", **arguments)
        except (Refusal, KeeperLost, OSError) as error:
            self._over({**_UNKNOWN, "reason": "start_failed", "text": str(error)})
            return
        self._spawned = {**spawned, "node": node_name()}
        self._store_spawned()
        self._link.send({"event": "spawned", "spawned": self._told_spawned()})

    def _store_spawned(self) -> None:
        """Write down the first process, again once the agent's clock is known and differs."""
        told = self._told_spawned()
        if told is not None and told != self._stored_spawned:
            self._stored_spawned = told
            self._store(job_files.SPAWNED, told)

    def _told_spawned(self) -> dict[str, Any] | None:
        """The first process, as the agent is told it."""
        if self._spawned is None:
            return None
        return {**self._spawned, "started_at": self._link.agent_time(self._spawned["started_at"])}

    def _begin(self) -> None:
        """Say that the job's process is about to be made. From now on the job is not given to another node.

        Raises:
            Superseded: that has just happened, or the agent has taken the start back.
        """
        if not job_files.begin(self._directory, self._job["claim"]):
            raise Superseded("the agent has submitted it again")
        wanted = job_files.read(self._directory, job_files.JOB)
        if wanted is None or wanted["secret"] != self._job["secret"]:
            raise Superseded("the agent has taken it back")

    def _over(self, end: dict[str, Any]) -> None:
        """Write down how the job ended, or that it could not be started."""
        if self._exit is not None:
            return
        at = self._link.agent_time(end.get("at", time.time()))
        self._exit = {**end, "at": at, "node": node_name(), "asked_to_end": self._asked_to_end}
        self._stored = self._store(job_files.EXIT, self._exit)
        self._ended.set()

    def _store(self, name: str, content: dict[str, Any]) -> bool:
        """Write a file for the agent; a job does not end because that fails."""
        try:
            job_files.write(self._directory, name, content)
        except OSError as error:
            note(f"{name} could not be written: {error}")
            return False
        return True

    async def _store_end(self) -> None:
        """Write down the job's end after all, if the shared directory was full or away before."""
        deadline = time.monotonic() + _STORE
        while not self._stored and os.path.isdir(self._directory) and time.monotonic() < deadline:
            await asyncio.sleep(_STORE_PAUSE)
            assert self._exit is not None
            self._stored = self._store(job_files.EXIT, self._exit)

    def _on_event(self, message: dict[str, Any]) -> None:
        if message["event"] == "exited":
            self._over({name: value for name, value in message["exit"].items() if name != "job"})
        elif message["event"] == "log":
            note(message["text"])

    def _on_lost(self) -> None:
        """The keeper was killed. Another one ends the processes that it left."""
        note("the node's keeper was lost")
        self._spawn(self._replace_keeper())

    async def _replace_keeper(self) -> None:
        self._keeper = KeeperProcess(*begin(self._state_dir), self._on_event, self._ended.set)
        try:
            await self._keeper.open()
        except (KeeperLost, Refusal) as error:
            note(f"the processes that it left could not be ended: {error}")
        self._over({**_UNKNOWN, "reason": "agent_lost"})

    def _on_term(self) -> None:
        """Slurm ends the job: at the end of its time, for another job, or because somebody cancelled it."""
        self._asked_to_end = True

    def _refused(self) -> None:
        """The agent has removed the job, or has started it anew."""
        note("the agent does not know the job any more: it is ended")
        self._spawn(self._pass_on({"op": "kill"}))

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # The agent.

    def _hello(self) -> dict[str, Any]:
        state = {"spawned": self._told_spawned(), "exit": self._exit, "node": node_name()}
        state["number"] = self._job["claim"]["number"]
        return {"job": self._uid, "secret": self._job["secret"], "kind": "control", **state}

    async def _serve(self, message: dict[str, Any]) -> None:
        number, op = message.pop("id", None), message.pop("op", "")
        try:
            result = await self._carry_out(op, message)
        except Refusal as refusal:
            answer: dict[str, Any] = {"error": {"code": refusal.code, "text": str(refusal)}}
        except KeeperLost as error:
            answer = {"error": {"code": "not_running", "text": str(error)}}
        except Exception as error:  # A failed request must not end the job.
            note(f"request {op!r} failed: {error!r}")
            answer = {"error": {"code": "internal", "text": f"the node failed at {op!r}: {error!r}"}}
        else:
            answer = {"result": result}
        if number is not None:
            self._link.send({"id": number, **answer})

    async def _carry_out(self, op: str, arguments: dict[str, Any]) -> Any:
        if op in _PASSED_ON:
            return await self._pass_on({"op": op, **arguments})
        if op == "listeners":
            sockets = await self._sockets.survey()
            return {"own": sockets.own, "foreign": sockets.foreign, "hidden": sockets.hidden,
                    "hidden_uids": sorted(sockets.hidden_uids), "pids": sorted(sockets.pids)}  # fmt: skip
        if op == "spares":
            for _ in range(arguments["count"]):
                self._spawn(self._spare())
            return None
        if op == "reported":
            waiting = self._reports.pop(arguments["port"], None)
            if waiting is not None and not waiting.done():
                waiting.set_result(arguments["refusal"])
            return None
        raise Refusal("invalid", f"the node knows no operation {op!r}")

    async def _pass_on(self, message: dict[str, Any]) -> Any:
        if self._keeper is None or self._spawned is None:
            raise Refusal("not_running", f"job '{self._uid}' is not running")
        return await self._keeper.request(message.pop("op"), job=self._uid, **message)

    async def _processes(self) -> list[int]:
        pids: list[int] = await self._pass_on({"op": "processes"})
        return pids

    async def _spare(self) -> None:
        """Open a connection to the agent for a connection to the job's server, and serve it."""
        try:
            spare = await dial(self._directory, {"job": self._uid, "secret": self._job["secret"], "kind": "spare"})
        except (OSError, ValueError, Refused) as error:
            note(f"no connection for a client could be made: {error}")
            return
        await serve_relay(spare, self._sockets)

    async def _report(self, port: int) -> str:
        """Tell the agent a port that the job reports; return why it refuses it."""
        answer = self._reports.setdefault(port, asyncio.get_running_loop().create_future())
        self._link.send({"event": "port", "port": port})
        try:
            return await asyncio.wait_for(asyncio.shield(answer), _REPORT)
        except asyncio.TimeoutError:
            self._reports.pop(port, None)
            return "the agent cannot be reached now; report the port again"


def serve(directory: str, job: dict[str, Any], state_dir: str, keeper: tuple[int, socket.socket]) -> int:
    """Run a job to its end; return the exit code for Slurm."""

    async def run() -> int:
        return await Node(directory, job, state_dir).run(keeper)

    return asyncio.run(run())


def _exit_code(end: dict[str, Any]) -> int:
    if end["signal"] is not None:
        numbers = (number for number in signal.valid_signals() if signal_name(number) == end["signal"])
        return 128 + next(numbers, 0)
    return int(end["exit_code"]) & 255 if end["exit_code"] is not None else 1


def _is_free(port: int) -> bool:
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        except OSError as error:
            if error.errno in _TAKEN:
                return False
    return True
