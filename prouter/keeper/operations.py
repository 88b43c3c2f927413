"""The keeper's table of jobs, and one method for each operation that the agent may ask for.

The methods of the agent's runner have the same names (`prouter.runners.interface`). `prouter.keeper.wire` describes the
messages, `prouter.keeper.job` the states of a job.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

from prouter.keeper.agent_link import AgentLink
from prouter.keeper.cgroups import Group, Hierarchy
from prouter.keeper.death_notice import Notice
from prouter.keeper.job import WITH_PROCESSES, WITHOUT_PROCESSES, Job, JobState
from prouter.keeper.journal import Journal, remove_sandbox
from prouter.keeper.log_files import copy_path, regular_file
from prouter.keeper.log_pipes import LogPipes, Output
from prouter.keeper.requests import Refused, Request, Start
from prouter.keeper.spawning import Command, SpawnError, explained, read_outcome, start
from prouter.keeper.trees import Trees
from prouter.keeper.wire import PROTOCOL
from prouter.processes.limits import Limits
from prouter.processes.process_tree import MARK_VARIABLE, InvalidUid
from prouter.processes.users import User, kill_processes

__all__ = ["Operations"]

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


class Operations:
    """The table of jobs and the operations on it.

    Args:
        groups: where jobs get control groups; None if they get none.
        pipes: carry what jobs write to their logs.
        watch: have the loop call `outcome` once this descriptor is readable.
        unwatch: stop that.
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
        self.death_notice = Notice([], {}, "")
        """Command that tells the routers that the agent has died."""
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
            "forget": self._forget,
            "death_notice": self._death_notice,
            "end": self._end,
        }

    def handle(self, message: dict[str, Any]) -> None:
        """Carry out the operation that a message asks for, and answer it."""
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
            if error.errno in _NO_DESCRIPTORS:
                self._link.log("warning", f"event=no_descriptors op={op} error={str(error)!r}")
                text = f"the keeper could not open a file: {explained(error)}"
                request.refuse("start_failed" if op == "spawn" else "unavailable", text)
            elif error.errno not in _FULL:
                self._failed(request, op, error)
            else:
                self._link.log("warning", f"event=no_space op={op} error={str(error)!r}")
                request.refuse(
                    "no_space", "the disk of the agent's state directory is full; free some space and try again"
                )
        except Exception as error:  # A failed request must not end the keeper, and all jobs with it.
            self._failed(request, op, error)

    def _failed(self, request: Request, op: object, error: Exception) -> None:
        try:
            import traceback  # Late: the keeper starts faster without it, and hardly ever needs it.

            told = traceback.format_exc()
        except OSError:  # No file can be read now, and none must be to answer.
            told = repr(error)
        self._link.log("error", f"event=operation_failed op={op} traceback={told!r}")
        request.refuse(
            "internal", f"the keeper failed at operation {op!r}: {error!r}; the agent's log has the traceback"
        )

    def outcome(self, pipe: int) -> bool:
        """Read from a forked child's pipe whether its command runs.

        Returns:
            False if the descriptor is no such pipe.
        """
        starting = self._pipes.pop(pipe, None)
        if starting is None:
            return False
        self._unwatch(pipe)
        job = starting.job
        try:
            read_outcome(pipe)
        except SpawnError as error:
            starting.failure = str(error)  # Answered once the child, which is about to exit, has been reaped.
            return True
        del self._starts[job.uid]
        if job.state is JobState.STARTING:
            job.change(JobState.RUNNING)
        starting.request.answer(_spawned(job))
        return True

    def end_all(self) -> None:
        """Begin to end every process tree; `trees.empty` tells when that is done."""
        self.ending = True
        if self._groups is not None:
            self._groups.give_back()
        for job in list(self._jobs.values()):
            self.trees.end(job, None)
        self.trees.reap()

    def clean_up(self) -> None:
        """Remove the sandboxes, once no tree is left, and answer the request that asked for the end."""
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

    def _death_notice(self, request: Request, *, argv: list[str], environment: dict[str, str], text: str) -> None:
        """Remember the command that tells the routers when the agent has died."""
        self.death_notice = Notice(argv, environment, text)
        request.answer(None)

    def _hold(
        self, request: Request, *, job: str, record: dict[str, Any], sandbox: str | None, ended: dict[str, Any] | None
    ) -> None:
        """Hold a job without a process: one that is not started yet, or one that ended under an earlier keeper."""
        if job in self._jobs:
            raise Refused("conflict", f"the keeper knows job '{job}' already")
        held = Job(job, record, sandbox)
        if ended is not None:
            held.exit = ended
            held.change(JobState.ENDED)
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
        user: dict[str, Any] | None = None,
        copies: str | None = None,
        **command: Any,
    ) -> None:
        """Start a job, new or held. The answer follows once its command runs or could not be executed.

        Args:
            copies: directory for copies of the logs' beginnings, if that is not the sandbox that the keeper removes.
        """
        held = self._jobs.get(job)
        if held is not None and held.state is not JobState.HELD:
            raise Refused("conflict", f"job '{job}' was started already")
        if self.ending or not command["argv"]:
            raise Refused(
                "start_failed",
                "the keeper is ending and starts no more jobs" if self.ending else "the list of arguments is empty",
            )
        started = Job(job, record, sandbox)
        started.limits = Limits(**limits)
        started.user = User(**user) if user is not None else None
        directory = self._groups.where(job) if self._groups is not None else None
        if held is None or held.sandbox != sandbox or directory is not None:
            self._journal.add(job, sandbox, directory)
        started.group = self._make_group(job, started.limits)
        env[MARK_VARIABLE] = job
        group = started.group.procs if started.group is not None else None
        try:
            with self._outputs(started, copies or sandbox, stdout, stderr) as (out, err):
                pid, pipe = start(
                    Command(
                        job=job,
                        env=env,
                        limits=started.limits,
                        group=group,
                        sandbox=sandbox,
                        user=started.user,
                        stdout=out,
                        stderr=err,
                        **command,
                    ),
                    self._watch,
                )
        except BaseException as error:
            if started.group is not None:
                started.group.remove()
            if held is None:
                self._journal.drop(job)
            if isinstance(error, SpawnError):
                raise Refused("start_failed", str(error)) from None
            raise
        self._jobs[job] = started
        self.trees.add(started, pid)
        self._starts[job] = self._pipes[pipe] = Start(started, request, held=held is not None, pipe=pipe)

    @contextlib.contextmanager
    def _outputs(self, job: Job, copies: str | None, *paths: str | None) -> Iterator[list[int | None]]:
        """The writing ends for the job's stdout and stderr: a pipe for each log, None for the agent's own output.

        If the agent's own output is a regular file, the job gets a pipe to it instead, because opening ``/dev/stdout``
        would truncate the file. Both get the same pipe if both are the same file.

        Raises:
            SpawnError: a log cannot be opened. No pipe is left open if the block raises.
        """
        outputs: dict[object, Output] = {}
        wanted: list[object] = []
        for fd, path in enumerate(paths, 1):
            if path is not None:
                wanted.append(path)
                outputs[path] = Output(path, copy_path(path, copies))
            else:
                file = regular_file(fd)
                wanted.append(file)
                if file is not None:
                    outputs[file] = Output(fd, None)
        try:
            owner = job.user.uid if job.user is not None else None
            ends = dict(zip(outputs, self._logs.open(job.uid, list(outputs.values()), owner), strict=True))
        except OSError as error:
            what = f"log {error.filename!r}" if error.filename is not None else "output"
            raise SpawnError(f"its {what} cannot be opened: {explained(error)}") from None
        try:
            yield [ends.get(one) for one in wanted]
        except BaseException:
            self._logs.finish(job.uid, lambda: None)
            raise
        finally:
            for end in ends.values():
                os.close(end)

    def _make_group(self, job: str, limits: Limits) -> Group | None:
        """A control group for the job; None if there is none, and the keeper enforces the limits itself."""
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
        """Kill the tree. The answer follows when no process of it is left, at once if none runs."""
        doomed = self._job(job)
        if doomed.state in WITHOUT_PROCESSES:
            request.answer(None)
            return
        self._kills.setdefault(job, []).append(request)
        self.trees.end(doomed, None)

    def _usage(self, request: Request, *, job: str) -> None:
        request.answer(self.trees.usage(self._running(job))._asdict())

    def _processes(self, request: Request, *, job: str) -> None:
        request.answer([process.pid for process in self.trees.members(self._running(job)) if process.alive])

    def _forget(self, request: Request, *, job: str) -> None:
        """Drop a job that has ended or was never started. From then on its sandbox is the agent's alone."""
        ended = self._job(job)
        if ended.state not in WITHOUT_PROCESSES:
            raise Refused("conflict", f"job '{job}' is running; end it before it is dropped")
        self._drop(ended)
        request.answer(None)

    def _end(self, request: Request) -> None:
        """End all jobs and the keeper. The answer is the last message of this keeper."""
        self._end_request = request
        self.end_all()

    def _job(self, uid: str) -> Job:
        job = self._jobs.get(uid)
        if job is None:
            raise Refused("unknown_job", f"the keeper knows no job '{uid}'")
        return job

    def _running(self, uid: str) -> Job:
        job = self._job(uid)
        if job.state not in WITH_PROCESSES:
            raise Refused("not_running", f"job '{uid}' is not running")
        return job

    def _tree_gone(self, job: Job) -> None:
        starting = self._starts.get(job.uid)
        if starting is not None and starting.failure is None:
            self.outcome(starting.pipe)  # The first process ended before the loop looked at the pipe.
        if job.user is not None and job.user.alone:
            try:
                kill_processes(job.user)  # Those that left the tree, with the help of another service.
            except OSError as error:
                self._link.log("warning", f"event=user_not_cleared user={job.user.name} error={str(error)!r}")
        self._logs.finish(job.uid, lambda: self._tell_end(job, starting))

    def _tell_end(self, job: Job, starting: Start | None) -> None:
        """Tell the agent that a job has ended. No process of it is left, and its logs hold all that they wrote."""
        if starting is not None and starting.failure is not None:
            self._not_started(starting, starting.failure)
        else:
            self._link.send({"event": "exited", "exit": job.exit})
        for request in self._kills.pop(job.uid, ()):
            request.answer(None)

    def _not_started(self, starting: Start, text: str) -> None:
        """Undo a failed start: a job that was held is held again and may be started again; another is dropped."""
        job = starting.job
        del self._starts[job.uid]
        if starting.held:
            self.trees.forget(job)
            self._jobs[job.uid] = Job(job.uid, job.record, job.sandbox)
            with contextlib.suppress(
                OSError
            ):  # On a full disk the journal keeps naming a control group that is gone, which is harmless.
                self._journal.add(job.uid, job.sandbox)
        else:
            self._drop(job)
        starting.request.refuse("start_failed", text)

    def _drop(self, job: Job) -> None:
        del self._jobs[job.uid]
        self.trees.forget(job)
        self._journal.drop(job.uid)


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
