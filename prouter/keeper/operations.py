"""What the keeper does for its agent: the table of jobs, and one method per operation of the wire.

The runner's methods mirror these; `prouter.keeper.wire` has the form of the messages.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

from prouter.keeper.agent_link import AgentLink
from prouter.keeper.cgroups import Group, Hierarchy
from prouter.keeper.journal import Journal, remove_sandbox
from prouter.keeper.log_pipes import LogPipes, Output
from prouter.keeper.spawning import Command, SpawnError, read_outcome, start
from prouter.keeper.trees import Job, Trees
from prouter.keeper.wire import PROTOCOL
from prouter.processes.limits import Limits
from prouter.processes.process_tree import MARK_VARIABLE, InvalidUid

__all__ = ["Operations"]

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Refused(Exception):
    """An operation that cannot be done: a code for the runner and a text for a person."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Request:
    """One request, to be answered now or later; an answer to an agent that is gone by then is dropped."""

    def __init__(self, link: AgentLink, number: int) -> None:
        self._link = link
        self._agent = link.agent
        self._number = number

    def answer(self, result: Any) -> None:
        """It is done."""
        self._reply({"id": self._number, "result": result})

    def refuse(self, code: str, text: str) -> None:
        """It cannot be done."""
        self._reply({"id": self._number, "error": {"code": code, "text": text}})

    def _reply(self, message: dict[str, Any]) -> None:
        if self._link.agent is self._agent:
            self._link.send(message)


class Start:
    """A job's start that is under way: who asked, whether the job was held before, the pipe that tells the outcome."""

    def __init__(self, job: Job, request: Request, *, held: bool, pipe: int) -> None:
        self.job = job
        self.request = request
        self.held = held
        self.pipe = pipe
        self.failure: str | None = None


class Operations:
    """The table of jobs.

    Args:
        groups: where jobs get control groups; None for nowhere.
        pipes: what the jobs write.
        watch, unwatch: have the loop call `outcome` with a descriptor once it is readable, and no more.
    """

    def __init__(
        self,
        link: AgentLink,
        journal: Journal,
        groups: Hierarchy | None,
        pipes: LogPipes,
        *,
        watch: Callable[[int], None],
        unwatch: Callable[[int], None],
    ) -> None:
        self.trees = Trees(self._tree_gone, link.log, helper=lambda: pipes.writer, on_helper_gone=pipes.writer_ended)
        self.keep_for = 0.0
        self.ending = False
        self.obituary: tuple[list[str], list[bytes]] = ([], [])
        """Routers to be told that the agent is dead, and the message."""
        self._link = link
        self._journal = journal
        self._groups = groups
        self._logs = pipes
        self._watch = watch
        self._unwatch = unwatch
        self._jobs: dict[str, Job] = {}
        self._starts: dict[str, Start] = {}
        self._pipes: dict[int, Start] = {}
        self._kills: dict[str, list[Request]] = {}
        self._end_request: Request | None = None
        self._operations: dict[str, Callable[..., None]] = {
            "hello": self._hello,
            "hold": self._hold,
            "spawn": self._spawn,
            "update": self._update,
            "signal": self._signal,
            "kill": self._kill,
            "usage": self._usage,
            "processes": self._processes,
            "list": self._list,
            "forget": self._forget,
            "configure": self._configure,
            "obituary": self._obituary,
            "end": self._end,
        }

    def handle(self, message: dict[str, Any]) -> None:
        """Do what a message asks for, and answer it."""
        request = Request(self._link, message.pop("id", 0))
        op = message.pop("op", None)
        try:
            if op not in self._operations:
                raise Refused("invalid", f"the keeper knows no operation {op!r}")
            self._operations[op](request, **message)
        except Refused as refused:
            request.refuse(refused.code, refused.text)
        except InvalidUid as error:
            request.refuse("invalid", str(error))
        except OSError as error:
            if error.errno not in _FULL:
                self._failed(request, op, error)
            else:
                self._link.log("warning", f"event=no_space op={op} error={str(error)!r}")
                request.refuse("no_space", "no space left on the agent's disk, in its state directory")
        except Exception as error:  # One bad request must not take all jobs down with the keeper.
            self._failed(request, op, error)

    def _failed(self, request: Request, op: object, error: Exception) -> None:
        import traceback  # Late: hardly ever needed.

        self._link.log("error", f"event=operation_failed op={op} traceback={traceback.format_exc()!r}")
        request.refuse("internal", f"the keeper failed at {op!r}: {error!r}")

    def outcome(self, pipe: int) -> bool:
        """Note how a start went, if that is what this readable descriptor is for."""
        starting = self._pipes.pop(pipe, None)
        if starting is None:
            return False
        self._unwatch(pipe)
        job = starting.job
        try:
            read_outcome(pipe)
        except SpawnError as error:
            starting.failure = str(error)  # Answered when its process is gone, which is about to end.
            return True
        del self._starts[job.uid]
        if job.state == "starting":
            job.state = "running"
        starting.request.answer(_spawned(job))
        return True

    def end_all(self) -> None:
        """Begin to end every tree; `trees.empty` tells when that is done."""
        self.ending = True
        if self._groups is not None:
            self._groups.give_back()
        for job in list(self._jobs.values()):
            self.trees.end(job, None)
        self.trees.reap()

    def clean_up(self) -> None:
        """With all trees gone: remove the sandboxes, and answer who asked for the end."""
        for job in self._jobs.values():
            if job.sandbox is not None:
                remove_sandbox(job.sandbox, self._link.log)
            self._journal.drop(job.uid)
        if self._end_request is not None:
            self._end_request.answer(None)

    def _hello(self, request: Request, *, keep_for: float) -> None:
        self.keep_for = keep_for
        jobs = [_listed(job) for job in self._jobs.values()]
        request.answer({"protocol": PROTOCOL, "pid": os.getpid(), "jobs": jobs})

    def _configure(self, request: Request, *, keep_for: float) -> None:
        self.keep_for = keep_for
        request.answer(None)

    def _obituary(self, request: Request, *, routers: list[str], message: list[str]) -> None:
        """Remember whom to tell what when the agent has died; parts of the message in hexadecimal."""
        self.obituary = (routers, [bytes.fromhex(part) for part in message])
        request.answer(None)

    def _hold(
        self, request: Request, *, job: str, record: dict[str, Any], sandbox: str | None, ended: dict[str, Any] | None
    ) -> None:
        """Keep a job that has no process: one not started yet, or one that ended under an earlier keeper."""
        if job in self._jobs:
            raise Refused("conflict", f"job '{job}' is already known to the keeper")
        held = Job(job, record, sandbox)
        if ended is not None:
            held.state, held.exit = "ended", ended
        self._journal.add(job, sandbox)
        self._jobs[job] = held
        request.answer(None)

    def _spawn(
        self,
        request: Request,
        *,
        job: str,
        record: dict[str, Any],
        sandbox: str | None,
        limits: dict[str, Any],
        env: dict[str, str],
        stdout: str | None,
        stderr: str | None,
        **command: Any,
    ) -> None:
        """Start a job, new or held; answered once its command runs or could not be run."""
        held = self._jobs.get(job)
        if held is not None and held.state != "held":
            raise Refused("conflict", f"job '{job}' was started already")
        if self.ending or not command["argv"]:
            raise Refused("start_failed", "the keeper is ending" if self.ending else "the list of arguments is empty")
        started = Job(job, record, sandbox)
        started.limits = Limits(**limits)
        directory = self._groups.where(job) if self._groups is not None else None
        if held is None or held.sandbox != sandbox or directory is not None:
            self._journal.add(job, sandbox, directory)
        started.group = self._make_group(job, started.limits)
        env[MARK_VARIABLE] = job
        group = started.group.procs if started.group is not None else None
        try:
            with self._outputs(started, stdout, stderr) as (out, err):
                pid, pipe = start(
                    Command(job=job, env=env, limits=started.limits, group=group, stdout=out, stderr=err, **command)
                )
            self._logs.watch(job)
        except SpawnError as error:
            if started.group is not None:
                started.group.remove()
            if held is None:
                self._journal.drop(job)
            raise Refused("start_failed", str(error)) from None
        self._jobs[job] = started
        self.trees.add(started, pid)
        self._starts[job] = self._pipes[pipe] = Start(started, request, held=held is not None, pipe=pipe)
        self._watch(pipe)

    @contextlib.contextmanager
    def _outputs(self, job: Job, *paths: str | None) -> Iterator[list[int | None]]:
        """What stdout and stderr are to be: pipes for logs; None for the agent's own output.

        That is a pipe as well where it is a file, and one pipe for both if both are the same file: else the job would
        truncate it by opening ``/dev/stdout``.

        Raises:
            SpawnError: a log cannot be written, or the block raised it; no pipe is left.
        """
        outputs: dict[object, Output] = {}
        wanted: list[object] = []
        for fd, path in enumerate(paths, 1):
            if path is not None:
                wanted.append(path)
                outputs[path] = Output(path, _copy(path, job.sandbox))
            else:
                file = _regular_file(fd)
                wanted.append(file)
                if file is not None:
                    outputs[file] = Output(fd, None)
        try:
            ends = dict(zip(outputs, self._logs.open(job.uid, list(outputs.values())), strict=True))
        except OSError as error:
            what = f"log {error.filename!r}" if error.filename is not None else "output"
            hint = " (raise the agent's limit of open files)" if error.errno == errno.EMFILE else ""
            raise SpawnError(f"its {what} cannot be opened: {error.strerror}{hint}") from None
        try:
            yield [ends.get(one) for one in wanted]
        except SpawnError:
            self._logs.finish(job.uid, lambda: None)
            raise
        finally:
            for end in ends.values():
                os.close(end)

    def _make_group(self, job: str, limits: Limits) -> Group | None:
        """A control group for the job; without one it is looked after by other means."""
        if self._groups is None:
            return None
        try:
            return self._groups.make(job, limits)
        except OSError as error:
            self._link.log("warning", f"event=cgroup_not_made job={job} error={str(error)!r}")
            return None

    def _update(self, request: Request, *, job: str, record: dict[str, Any]) -> None:
        self._job(job).record = record
        request.answer(None)

    def _signal(self, request: Request, *, job: str, signum: int, tree: bool) -> None:
        self.trees.signal(self._running(job), signum, tree=tree)
        request.answer(None)

    def _kill(self, request: Request, *, job: str) -> None:
        """Kill the tree; answered when nothing of it is left, at once if nothing runs."""
        doomed = self._job(job)
        if doomed.state in ("held", "ended"):
            request.answer(None)
            return
        self._kills.setdefault(job, []).append(request)
        self.trees.end(doomed, None)

    def _usage(self, request: Request, *, job: str) -> None:
        request.answer(self.trees.usage(self._running(job))._asdict())

    def _processes(self, request: Request, *, job: str) -> None:
        request.answer([process.pid for process in self.trees.members(self._running(job)) if process.alive])

    def _list(self, request: Request) -> None:
        request.answer([_listed(job) for job in self._jobs.values()])

    def _forget(self, request: Request, *, job: str) -> None:
        """Drop a job that has ended or never started; its sandbox is the agent's again."""
        ended = self._job(job)
        if ended.state not in ("held", "ended"):
            raise Refused("conflict", f"job '{job}' is running")
        self._drop(ended)
        request.answer(None)

    def _end(self, request: Request) -> None:
        """End everything, the keeper too; answered last of all."""
        self._end_request = request
        self.end_all()

    def _job(self, uid: str) -> Job:
        job = self._jobs.get(uid)
        if job is None:
            raise Refused("unknown_job", f"job '{uid}' is not known to the keeper")
        return job

    def _running(self, uid: str) -> Job:
        job = self._job(uid)
        if job.state not in ("starting", "running"):
            raise Refused("not_running", f"job '{uid}' is not running")
        return job

    def _tree_gone(self, job: Job) -> None:
        starting = self._starts.get(job.uid)
        if starting is not None and starting.failure is None:
            self.outcome(starting.pipe)  # Its first process ended before the pipe was looked at.
        self._logs.finish(job.uid, lambda: self._tell_end(job, starting))

    def _tell_end(self, job: Job, starting: Start | None) -> None:
        """A job's processes are gone, and what they wrote is in its logs."""
        if starting is not None and starting.failure is not None:
            self._not_started(starting, starting.failure)
        else:
            self._link.send({"event": "exited", "exit": job.exit})
        for request in self._kills.pop(job.uid, ()):
            request.answer(None)

    def _not_started(self, starting: Start, text: str) -> None:
        """Back to how it was before: a held job whose start failed may be started again, another is forgotten."""
        job = starting.job
        del self._starts[job.uid]
        if starting.held:
            self.trees.forget(job)
            self._jobs[job.uid] = Job(job.uid, job.record, job.sandbox)
            with contextlib.suppress(OSError):  # A full disk: what is written down names a group too many.
                self._journal.add(job.uid, job.sandbox)
        else:
            self._drop(job)
        starting.request.refuse("start_failed", text)

    def _drop(self, job: Job) -> None:
        del self._jobs[job.uid]
        self.trees.forget(job)
        self._journal.drop(job.uid)


def _regular_file(fd: int) -> tuple[int, int] | None:
    """Device and inode number of an open regular file; None for anything else."""
    try:
        info = os.fstat(fd)
    except OSError:
        return None  # The agent was started without it.
    return (info.st_dev, info.st_ino) if stat.S_ISREG(info.st_mode) else None


def _copy(path: str, sandbox: str | None) -> str | None:
    """Where the copy of a log's beginning goes: into the sandbox, unless the log itself is there."""
    if sandbox is None or os.path.dirname(path) == sandbox:
        return None
    return f"{sandbox}/.pagent.{path.rpartition('.')[2]}"


def _spawned(job: Job) -> dict[str, Any]:
    return {"pid": job.pid, "start_time": job.start, "started_at": job.started_at}


def _listed(job: Job) -> dict[str, Any]:
    return {
        "job": job.uid,
        "record": job.record,
        "sandbox": job.sandbox,
        "spawned": _spawned(job) if job.pid else None,
        "exit": job.exit,
    }
