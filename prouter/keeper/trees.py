"""The jobs' process trees: which job a process belongs to, what a tree uses, and how the keeper ends all of it.

The keeper is a subreaper (prctl(2)): a process whose parent has ended becomes a child of the keeper, an *orphan*. So a
job's tree is its first process, its orphans, and the descendants of these. The keeper attributes an orphan to a job by
its user if the job has one of its own, by its control group where jobs have one, by its session or process group, by
its mark (`limits.apply`), by an earlier look that saw it in a tree, or by its environment.

The keeper does not reap a first process that has ended until the rest of its tree is gone. Until then the kernel cannot
give its pid to another process, session or process group, so signals to the group are safe.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator

from prouter.keeper.cgroups import jobs_of
from prouter.keeper.job import WITH_PROCESSES, Job, JobState
from prouter.processes import limits as job_limits
from prouter.processes.halting import Halt
from prouter.processes.limits import Sample
from prouter.processes.process_tree import (
    Process,
    children,
    cpu_seconds,
    descend,
    effective_uid,
    environment_mark,
    limit_mark,
    pss_bytes,
    read_process,
    rss_bytes,
    send,
)

__all__ = ["Trees", "signal_name"]

_ZOMBIE_RETRY = 0.02
_RETRY_MOST = 1.0
_SHOWN = 20
_ASK_TO_END = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
_PATIENCE = 5.0
"""Seconds after which the keeper logs a tree that does not end, again and again."""


def signal_name(signum: int) -> str:
    """``SIGTERM`` and the like; real-time signals without a name of their own as ``SIGRTMIN+n``."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"SIGRTMIN+{signum - signal.SIGRTMIN}"


class Trees:
    """All process trees of this keeper.

    Args:
        on_gone: called when no process of a job is left; the job is ENDED and `Job.exit` is set.
        log: takes the name of a level and an event line.
        helper: pid of the keeper's child that belongs to no job (the log writer), None while there is none.
        on_helper_gone: called when that child has ended and was reaped.
    """

    def __init__(
        self,
        on_gone: Callable[[Job], None],
        log: Callable[[str, str], None],
        *,
        helper: Callable[[], int | None],
        on_helper_gone: Callable[[], None],
    ) -> None:
        self._on_gone = on_gone
        self._log = log
        self._helper = helper
        self._on_helper_gone = on_helper_gone
        self._pid = os.getpid()
        self._firsts: dict[int, Job] = {}
        self._exited: set[int] = set()
        self._orphans: dict[int, Job | None] = {}
        self._marks: dict[int, Job] = {}
        self._timed: set[Job] = set()

    @property
    def empty(self) -> bool:
        """Whether no process is left, neither of a job nor one whose job is unknown."""
        return not self._firsts and not self._children()

    def _children(self) -> list[int]:
        """Pids of the keeper's children without its helper."""
        helper = self._helper()
        return [pid for pid in children(self._pid) if pid != helper]

    def add(self, job: Job, pid: int) -> None:
        """Add a job whose first process was just forked; it is STARTING."""
        process = read_process(pid)
        assert process is not None, "a child that was not reaped is always in /proc"
        job.pid, job.start, job.started_at = pid, process.start, time.time()
        job.change(JobState.STARTING)
        self._firsts[pid] = job
        self._marks[job.mark] = job
        if job.watched.watched:
            job.act_at = time.monotonic() + job_limits.FIRST_LOOK
            self._timed.add(job)

    def forget(self, job: Job) -> None:
        """Attribute no more processes to a job that has ended."""
        if self._marks.get(job.mark) is job:
            del self._marks[job.mark]

    def members(self, job: Job, *, most: int | None = None) -> list[Process]:
        """The processes of the job's tree, zombies included, parents first.

        Args:
            most: stop after so many (`descend`).
        """
        found = descend(self._roots(job), most=most)
        if job.group is not None and (most is None or len(found) < most):
            # A process may have left its parent since and not be known as an orphan yet.
            known = {process.pid for process in found}
            found += descend([pid for pid in job.group.processes() if pid not in known])
        job.seen = {process.key for process in found}
        return found

    def _roots(self, job: Job) -> list[int]:
        """Pids of the first process and of the job's orphans."""
        self._survey()
        roots = [job.pid] if job.pid in self._firsts and job.pid not in self._exited else []
        return roots + [pid for pid, owner in self._orphans.items() if owner is job]

    def usage(self, job: Job) -> Sample:
        """What the job's tree uses now. Shared memory counts once for each process."""
        return self._sample(job, self.members(job))

    def _sample(self, job: Job, processes: list[Process]) -> Sample:
        return Sample(
            cpu_seconds=self._cpu_seconds(job, cpu_seconds(processes) + job.orphans_cpu),
            rss_bytes=sum(rss_bytes(process.pid) for process in processes),
            processes=len(processes),
        )

    @staticmethod
    def _cpu_seconds(job: Job, seen: float) -> float:
        """CPU seconds by the job's control group, which misses no process; `seen` if it has none."""
        told = job.group.cpu_seconds() if job.group is not None else None
        return seen if told is None else told

    def signal(self, job: Job, signum: int, *, tree: bool) -> None:
        """Send a signal to the job's first process, or to all of its tree, parents first.

        A signal that asks a tree to end is followed by SIGCONT, as systemd does it (systemd.kill(5)), because a stopped
        or frozen process cannot act on it.
        """
        if not tree:
            os.kill(job.pid, signum)
            return
        members = self.members(job)
        for process in members:
            send(process, signum)
        if signum in _ASK_TO_END:
            if job.group is not None:
                job.group.thaw()
            for process in members:
                send(process, signal.SIGCONT)

    def end(self, job: Job, reason: str | None) -> None:
        """Begin to kill the job's tree. `on_gone` follows once no process is left, possibly before this returns.

        Args:
            reason: the limit that was exceeded, None if somebody asked for the end or the first process ended.
        """
        if job.state not in WITH_PROCESSES:
            return
        job.change(JobState.ENDING)
        job.reason = reason
        job.dying_since = time.monotonic()
        self._timed.add(job)
        self._press(job)

    def reap(self) -> None:
        """Process the end of every child; the loop calls this after SIGCHLD."""
        touched: set[Job] = set()
        for pid, outcome in self._exits():
            if pid == self._helper():
                os.waitpid(pid, 0)
                self._on_helper_gone()
                continue
            first = self._firsts.get(pid)
            if first is None:
                owner = self._reap_orphan(pid)
                if owner is not None and owner.ending:
                    touched.add(owner)
                continue
            first.outcome, first.ended_at = outcome, time.time()
            first.was_told_to_end = first.ending
            self._exited.add(pid)
            first.dying.discard((pid, first.start))
            if first.ending:
                touched.add(first)
            else:
                self.end(first, None)
        for job in touched:
            if not job.dying and job.ending:
                self._press(job)
        if not self._firsts:
            self._sweep()

    def due(self) -> float | None:
        """When the loop must call `tick` next (monotonic seconds); None if no tree needs it."""
        return min((job.act_at for job in self._timed), default=None)

    def tick(self) -> None:
        """Check the trees that are due: those with limits the keeper enforces, and those that are ending."""
        now = time.monotonic()
        for job in [job for job in self._timed if job.act_at <= now]:
            if job.ending:
                self._press(job)
            else:
                self._look(job, now)

    def _look(self, job: Job, now: float) -> None:
        limits = job.watched
        enough = None if limits.processes is None else limits.processes + 1
        sample = self._sample(job, self.members(job, most=enough))
        if limits.memory is not None and sample.rss_bytes > limits.memory:
            # Shared pages counted for every process: measure exactly before ending the job for it.
            sample = sample._replace(rss_bytes=sum(map(pss_bytes, (pid for pid, _ in job.seen))))
        reason = job_limits.breach(limits, sample)
        if reason is None:
            job.act_at = now + job_limits.interval(limits, sample)
            return
        self._log("warning", f"event=limit_exceeded job={job.uid} limit={reason} used={sample._asdict()}")
        self.end(job, reason)

    def _press(self, job: Job) -> None:
        """Kill what is left of an ending tree, or finish it.

        The keeper stops every process before it kills one. A stopped process cannot fork, so a look that finds nothing
        new has found all. It kills children before their parents, because the end of a parent may wake its children.
        """
        if job.group is not None:
            job.group.kill()
        self._signal_group(job, signal.SIGSTOP)
        halt = Halt(job.dying, patience=0.0) if job.group is not None else Halt(job.dying)
        while halt.run(self._roots(job) + (job.group.processes() if job.group is not None else [])):
            pass
        job.seen = set(halt.found)
        living = [process for process in halt.found.values() if process.alive]
        if not living:
            if job.pid in self._exited:
                self._finish(job)
            else:  # The first process is a zombie, and its SIGCHLD has not been read yet.
                job.act_at = time.monotonic() + _ZOMBIE_RETRY
            return
        for process in reversed(living):
            send(process, signal.SIGKILL)
        job.dying = {process.key for process in living}
        now = time.monotonic()
        job.act_at = now + job.retry
        job.retry = min(job.retry * 2, _RETRY_MOST)
        if now - job.dying_since > _PATIENCE:
            job.dying_since = now
            self._log("warning", f"event=tree_does_not_end job={job.uid} {_shown(living)}")

    def _signal_group(self, job: Job, signum: int) -> None:
        # The first process may not have made its group yet, or only set-uid programs are left in it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(job.pid, signum)

    def _finish(self, job: Job) -> None:
        _, _, used = os.wait4(job.pid, 0)
        del self._firsts[job.pid]
        self._exited.discard(job.pid)
        self._timed.discard(job)
        job.seen.clear()
        job.change(JobState.ENDED)
        exit_code, signame = job.outcome
        cpu = self._cpu_seconds(job, used.ru_utime + used.ru_stime + job.orphans_cpu)
        by_itself = job.reason is None and not job.was_told_to_end
        if job.group is not None:
            # With a limit the kernel kills the whole group. Without one, only SIGKILL of the first process tells.
            if by_itself and job.group.out_of_memory() and (job.group.holds_memory or signame == "SIGKILL"):
                job.reason, by_itself = "memory", False
            if not job.group.remove():
                self._log("warning", f"event=cgroup_not_removed job={job.uid}")
        if by_itself and signame in ("SIGXCPU", "SIGKILL") and job_limits.is_backstop(job.limits, cpu):
            job.reason = "cpu"  # The kernel enforced the limit (RLIMIT_CPU) between two looks of the keeper.
        job.exit = {
            "job": job.uid,
            "exit_code": exit_code,
            "signal": signame,
            "reason": job.reason,
            "cpu_seconds": cpu,
            "max_rss": max(used.ru_maxrss * 1024, job.orphans_rss),
            "at": job.ended_at,
        }
        self._on_gone(job)

    def _exits(self) -> Iterator[tuple[int, tuple[int | None, str | None]]]:
        """Children that have ended and were not processed yet; they are not reaped by this."""
        peek = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while not self._exited:
            try:
                info = os.waitid(os.P_ALL, 0, peek)
            except ChildProcessError:
                return
            if info is None:
                return
            yield info.si_pid, _outcome(info)
        # An ended first process that is not reaped yet would be the answer of every waitid(P_ALL).
        for pid in children(self._pid):  # All children, so that the end of the helper is noticed as well.
            if pid not in self._exited:
                info = os.waitid(os.P_PID, pid, peek)
                if info is not None:
                    yield pid, _outcome(info)

    def _reap_orphan(self, pid: int) -> Job | None:
        owner = self._orphans.pop(pid, None)
        process = read_process(pid)
        if owner is None and process is not None:
            owner = self._attribute(process)
        used: resource.struct_rusage = os.wait4(pid, 0)[2]
        if owner is not None:
            owner.orphans_cpu += used.ru_utime + used.ru_stime
            owner.orphans_rss = max(owner.orphans_rss, used.ru_maxrss * 1024)
            if process is not None:
                owner.dying.discard(process.key)
        return owner

    def _survey(self) -> None:
        """Attribute the keeper's new children to jobs."""
        for pid in self._children():
            if pid in self._firsts or self._orphans.get(pid) is not None:
                continue
            process = read_process(pid)
            if process is None:
                continue
            owner = self._orphans[pid] = self._attribute(process)
            if owner is not None and owner.state is JobState.ENDED and process.alive:
                send(process, signal.SIGKILL)

    def _attribute(self, process: Process) -> Job | None:
        """The job of an orphan; None if it is not known.

        A process can forge its mark and its environment, but not its user. So a job that has a user of its own owns the
        processes of that user, and no others.
        """
        uid = effective_uid(process.pid)
        for job in self._marks.values():
            alone = job.user is not None and job.user.alone and job.state is not JobState.ENDED
            if alone and job.user is not None and job.user.uid == uid:
                return job
        owner = self._marked(process)
        if owner is not None and owner.user is not None and owner.user.uid != uid:
            return None
        return owner

    def _marked(self, process: Process) -> Job | None:
        """The job to which an orphan's groups, marks and past point."""
        grouped = jobs_of(process.pid)
        owner = next((job for job in self._marks.values() if job.uid in grouped), None) if grouped else None
        owner = owner or self._firsts.get(process.session) or self._firsts.get(process.group)
        if owner is None:
            mark = limit_mark(process.pid)
            owner = self._marks.get(mark) if mark is not None else None
        if owner is None:
            owner = next((job for job in self._firsts.values() if process.key in job.seen), None)
        if owner is None:
            uid = environment_mark(process.pid)
            owner = next((job for job in self._marks.values() if job.uid == uid), None) if uid is not None else None
        return owner

    def _sweep(self) -> None:
        """Kill every process that is left while no job runs: it belongs to a job that cannot be told any more."""
        halt = Halt()
        while halt.run(self._children()):
            pass
        left = [process for process in halt.found.values() if process.alive]
        if left:
            self._log("warning", f"event=strays_killed {_shown(left)}")
        for process in reversed(left):
            send(process, signal.SIGKILL)


def _shown(processes: list[Process]) -> str:
    some = " ".join(f"{process.pid}:{process.state}" for process in processes[:_SHOWN])
    return f"count={len(processes)} processes={some!r}"


def _outcome(info: os.waitid_result) -> tuple[int | None, str | None]:
    if info.si_code == os.CLD_EXITED:
        return info.si_status, None
    return None, signal_name(info.si_status)
