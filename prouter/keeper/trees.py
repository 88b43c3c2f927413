"""The jobs' process trees as the keeper sees them: whose a process is, what a tree uses, and ending all of it.

The keeper is a subreaper (prctl(2)), so a process whose parent ended becomes the keeper's own child. Hence all there is
of a job is its first process, those children of the keeper that are its orphans, and the descendants of these. A
stranger among the keeper's children is told by its control group where jobs have one, by its session or process group,
by its mark (`limits.apply`), by having been seen in a tree before, or by its environment.

A first process that ended is not reaped until its tree is gone: till then its pid cannot be given to another process,
session or process group, so signals to the group are safe.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from prouter.keeper.cgroups import Group, jobs_of
from prouter.processes import limits as job_limits
from prouter.processes.halting import Halt
from prouter.processes.limits import Limits, Sample
from prouter.processes.process_tree import (
    Process,
    children,
    cpu_seconds,
    descend,
    environment_mark,
    limit_mark,
    mark_value,
    pss_bytes,
    read_process,
    rss_bytes,
    send,
)

__all__ = ["Job", "Trees", "signal_name"]

_RETRY = 0.02
_RETRY_MOST = 1.0
_SHOWN = 20
_ASK_TO_END = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
_PATIENCE = 5.0
"""Seconds after which a tree that does not end is worth a log line."""


def signal_name(signum: int) -> str:
    """``SIGTERM`` and the like; real-time signals without a name of their own as ``SIGRTMIN+n``."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"SIGRTMIN+{signum - signal.SIGRTMIN}"


class Job:
    """One job in the keeper's table. States: held → starting → running → ending → ended."""

    def __init__(self, uid: str, record: dict[str, Any], sandbox: str | None) -> None:
        self.uid = uid
        self.mark = mark_value(uid)
        self.record = record
        self.sandbox = sandbox
        self.state = "held"
        self.limits = Limits()
        self.group: Group | None = None
        self.pid = 0
        self.start = 0
        self.started_at = 0.0
        self.outcome: tuple[int | None, str | None] = (None, None)
        self.ended_at = 0.0
        self.was_told_to_end = False
        self.reason: str | None = None
        self.exit: dict[str, Any] | None = None
        self.orphans_cpu = 0.0
        self.orphans_rss = 0
        self.seen: set[tuple[int, int]] = set()
        self.dying: set[tuple[int, int]] = set()
        self.dying_since = 0.0
        self.retry = _RETRY
        self.act_at = 0.0
        """When to look again (monotonic seconds): at what a watched tree uses, or whether an ending one is gone."""

    @property
    def watched(self) -> Limits:
        """The limits that the keeper itself has to see to."""
        held = self.group is not None and self.group.holds_memory
        return self.limits._replace(memory=None) if held else self.limits


class Trees:
    """All trees of this keeper.

    Args:
        on_gone: called when a job's first process and all of its tree are gone; `Job.exit` is filled in then.
        log: takes a level's name and an event line.
        helper: pid of the child of the keeper that is no job's, None while there is none.
        on_helper_gone: called when that has ended and was reaped.
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
        """Whether no process of any job is left, nor any whose job is not known."""
        return not self._firsts and not self._children()

    def _children(self) -> list[int]:
        """The keeper's children, but for its helper."""
        helper = self._helper()
        return [pid for pid in children(self._pid) if pid != helper]

    def add(self, job: Job, pid: int) -> None:
        """Take in a job whose first process was just forked."""
        process = read_process(pid)
        assert process is not None, "a child that was not reaped is always in /proc"
        job.pid, job.start, job.started_at = pid, process.start, time.time()
        job.state = "starting"
        self._firsts[pid] = job
        self._marks[job.mark] = job
        if job.watched.watched:
            job.act_at = time.monotonic() + job_limits.FIRST_LOOK
            self._timed.add(job)

    def forget(self, job: Job) -> None:
        """Drop a job that has ended."""
        if self._marks.get(job.mark) is job:
            del self._marks[job.mark]

    def members(self, job: Job, *, most: int | None = None) -> list[Process]:
        """The processes of the job's tree, zombies included, parents first; `most` as of `descend`."""
        found = descend(self._roots(job), most=most)
        if job.group is not None and (most is None or len(found) < most):
            # Whoever is not below these any more, nor known as an orphan yet.
            known = {process.pid for process in found}
            found += descend([pid for pid in job.group.processes() if pid not in known])
        job.seen = {process.key for process in found}
        return found

    def _roots(self, job: Job) -> list[int]:
        """The first process, and those that are the keeper's own children by now."""
        self._survey()
        roots = [job.pid] if job.pid in self._firsts and job.pid not in self._exited else []
        return roots + [pid for pid, owner in self._orphans.items() if owner is job]

    def usage(self, job: Job) -> Sample:
        """What the job's tree uses now; shared memory counts once for each process."""
        return self._sample(job, self.members(job))

    def _sample(self, job: Job, processes: list[Process]) -> Sample:
        return Sample(
            cpu_seconds=self._cpu_seconds(job, cpu_seconds(processes) + job.orphans_cpu),
            rss_bytes=sum(rss_bytes(process.pid) for process in processes),
            processes=len(processes),
        )

    @staticmethod
    def _cpu_seconds(job: Job, seen: float) -> float:
        """What the job's group says, which misses no process; without one, what was `seen`."""
        told = job.group.cpu_seconds() if job.group is not None else None
        return seen if told is None else told

    def signal(self, job: Job, signum: int, *, tree: bool) -> None:
        """Send a signal to the job's first process, or to all of its tree, parents first.

        A tree that is asked to end is also continued, as systemd does (systemd.kill(5), SendSIGHUP and below): what is
        stopped or frozen could not heed the request.
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
        """Begin to kill the job's tree; `on_gone` follows once nothing is left, perhaps before this returns."""
        if job.state not in ("starting", "running"):
            return
        job.state = "ending"
        job.reason = reason
        job.dying_since = time.monotonic()
        self._timed.add(job)
        self._press(job)

    def reap(self) -> None:
        """Take note of every child that ended; to be called after SIGCHLD."""
        touched: set[Job] = set()
        for pid, outcome in self._exits():
            if pid == self._helper():
                os.waitpid(pid, 0)
                self._on_helper_gone()
                continue
            first = self._firsts.get(pid)
            if first is None:
                owner = self._reap_orphan(pid)
                if owner is not None and owner.state == "ending":
                    touched.add(owner)
                continue
            first.outcome, first.ended_at = outcome, time.time()
            first.was_told_to_end = first.state == "ending"
            self._exited.add(pid)
            first.dying.discard((pid, first.start))
            if first.state == "ending":
                touched.add(first)
            else:
                self.end(first, None)
        for job in touched:
            if not job.dying and job.state == "ending":
                self._press(job)
        if not self._firsts:
            self._sweep()

    def due(self) -> float | None:
        """When `tick` is to be called next (monotonic seconds), or None while there is nothing to look at."""
        return min((job.act_at for job in self._timed), default=None)

    def tick(self) -> None:
        """Look at the trees that are due: those with limits, and those that are ending."""
        now = time.monotonic()
        for job in [job for job in self._timed if job.act_at <= now]:
            if job.state == "ending":
                self._press(job)
            else:
                self._look(job, now)

    def _look(self, job: Job, now: float) -> None:
        limits = job.watched
        enough = None if limits.processes is None else limits.processes + 1
        sample = self._sample(job, self.members(job, most=enough))
        if limits.memory is not None and sample.rss_bytes > limits.memory:
            # Looks too much, but shared pages were counted for each process: now exactly.
            sample = sample._replace(rss_bytes=sum(map(pss_bytes, (pid for pid, _ in job.seen))))
        reason = job_limits.breach(limits, sample)
        if reason is None:
            job.act_at = now + job_limits.interval(limits, sample)
            return
        self._log("warning", f"event=limit_exceeded job={job.uid} limit={reason} used={sample._asdict()}")
        self.end(job, reason)

    def _press(self, job: Job) -> None:
        """Kill what is left of an ending tree, or finish it.

        Everything is stopped before anything is killed: what is stopped cannot fork, so the first look that finds
        nothing new has found all. Children are killed before their parents, lest a parent's end wakes them.
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
            else:  # It is a zombie whose SIGCHLD has yet to be read.
                job.act_at = time.monotonic() + _RETRY
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
        # The first process may not have made its group yet, or the group may be of set-uid programs only.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(job.pid, signum)

    def _finish(self, job: Job) -> None:
        _, _, used = os.wait4(job.pid, 0)
        del self._firsts[job.pid]
        self._exited.discard(job.pid)
        self._timed.discard(job)
        job.seen.clear()
        job.state = "ended"
        exit_code, signame = job.outcome
        cpu = self._cpu_seconds(job, used.ru_utime + used.ru_stime + job.orphans_cpu)
        by_itself = job.reason is None and not job.was_told_to_end
        if job.group is not None:
            # All of a tree with a limit is killed; without one, the machine's memory ran out for a single process.
            if by_itself and job.group.out_of_memory() and (job.group.holds_memory or signame == "SIGKILL"):
                job.reason, by_itself = "memory", False
            if not job.group.remove():
                self._log("warning", f"event=cgroup_not_removed job={job.uid}")
        if by_itself and signame in ("SIGXCPU", "SIGKILL") and job_limits.is_backstop(job.limits, cpu):
            job.reason = "cpu"  # The backstop: the kernel ended the first process between two looks.
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
        """Children that ended and were not taken note of yet, without reaping them."""
        peek = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while not self._exited:
            try:
                info = os.waitid(os.P_ALL, 0, peek)
            except ChildProcessError:
                return
            if info is None:
                return
            yield info.si_pid, _outcome(info)
        # While an ended first process waits for its tree, waitid would give it again and again.
        for pid in children(self._pid):  # The helper too: its end is to be noticed.
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
        """Find out whose the keeper's new children are."""
        for pid in self._children():
            if pid in self._firsts or self._orphans.get(pid) is not None:
                continue
            process = read_process(pid)
            if process is None:
                continue
            owner = self._orphans[pid] = self._attribute(process)
            if owner is not None and owner.state == "ended" and process.alive:
                send(process, signal.SIGKILL)

    def _attribute(self, process: Process) -> Job | None:
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
        """With no job running, kill whatever is left: it belonged to one, and hid too well to tell which."""
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
