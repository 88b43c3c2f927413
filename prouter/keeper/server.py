"""The keeper's event loop, from its start to its end.

The loop sleeps in epoll until the agent sends a message, a child ends, a command was executed, or a tree is due to be
checked. When the agent disconnects, the keeper waits `keep_for` seconds for the next agent. Then it ends every process
tree, tells the routers, removes the sandboxes and exits.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import resource
import select
import signal
import socket
import time
from types import FrameType

from prouter.keeper import cgroups
from prouter.keeper.agent_link import AgentLink
from prouter.keeper.death_notice import Delivery
from prouter.keeper.journal import Journal, remove_sandbox
from prouter.keeper.log_pipes import LogPipes
from prouter.keeper.operations import Operations
from prouter.keeper.spawning import use_all_descriptors
from prouter.process.cores import forbid_inspection
from prouter.processes.halting import end_marked

__all__ = ["Keeper", "main"]

_PR_SET_CHILD_SUBREAPER = 36
_AMPLE_RTTIME = 1 << 40
"""Microseconds of real-time work without a pause, far more than a keeper ever does."""

_LOG_PATIENCE = 5.0
"""Seconds to wait for the log writer of a keeper that was killed."""
_PATIENCE = 30.0
"""Seconds to wait at the end for processes that do not die (in uninterruptible sleep) before they are left behind."""


class Keeper:
    """The event loop.

    Args:
        state_dir: holds the socket ``keeper.sock`` and the journal; locked by the caller.
        agent: connection of the agent that started this keeper.
        cgroup, move: see `cgroups.find`.
    """

    def __init__(self, state_dir: str, agent: socket.socket, *, cgroup: str, move: bool) -> None:
        self._poller = select.epoll()
        self._link = AgentLink(os.path.join(state_dir, "keeper.sock"), self._poller, agent)
        self._journal = Journal(state_dir)
        self._groups = cgroups.find(cgroup, move=move, log=self._link.log)
        self._pipes = LogPipes(self._poller, self._link.log, os.path.join(state_dir, "log-writer.lock"))
        self._operations = Operations(
            self._link,
            self._journal,
            self._groups,
            self._pipes,
            watch=lambda fd: self._poller.register(fd, select.EPOLLIN),
            unwatch=self._poller.unregister,
        )
        self._lost_at: float | None = None
        self._terminated = False
        self._give_up_at: float | None = None

    def end_leftovers(self, *, remove_sandboxes: bool) -> None:
        """End the trees that a killed keeper left behind.

        Args:
            remove_sandboxes: whether the agent was killed as well, so that no agent knows the jobs any more.
        """
        entries = self._journal.entries()
        if not entries:
            return
        cgroups.end_left([entry.group for entry in entries.values() if entry.group is not None], patience=_PATIENCE)
        left = end_marked(entries, patience=_PATIENCE)
        self._pipes.await_predecessor(_LOG_PATIENCE)
        self._link.log("warning", f"event=leftovers_ended jobs={len(entries)} still_there={len(left)}")
        for job, entry in entries.items():
            if remove_sandboxes and entry.sandbox is not None:
                remove_sandbox(entry.sandbox, self._link.log)
            self._journal.drop(job)

    def run(self) -> None:
        """Serve until no agent comes any more or the agent asks for the end."""
        wakeup = self._watch_signals()
        trees = self._operations.trees
        while not self._over():
            for fd, ready in self._poller.poll(self._timeout()):
                if fd == wakeup:
                    os.read(fd, 4096)
                    trees.reap()
                elif not self._operations.outcome(fd) and not self._pipes.ready(fd, ready):
                    self._talk(fd, ready)
            trees.tick()
            self._pipes.tick()
            self._check_end()
        if not trees.empty:
            self._link.log("error", "event=processes_left_behind reason='they do not die'")
        self._pipes.close()
        # An agent that ends on purpose says goodbye itself.
        told = self._tell_routers() if self._lost_at is not None else None
        self._operations.clean_up()
        if told is not None:
            told.finish()
        self._link.close()

    def _tell_routers(self) -> Delivery:
        return Delivery(self._operations.death_notice, lambda text: self._link.log("info", text))

    def _watch_signals(self) -> int:
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        # Empty handlers, because jobs would inherit SIG_IGN. The wakeup descriptor tells the loop.
        for signum in (signal.SIGCHLD, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_term)
        self._poller.register(reading, select.EPOLLIN)
        return reading

    def _on_term(self, signum: int, frame: FrameType | None) -> None:
        # A connected agent decides when to end. Without one, SIGTERM means that the machine or the service stops.
        self._terminated = not self._link.connected

    def _timeout(self) -> float | None:
        due = [self._operations.trees.due(), self._pipes.due(), self._give_up_at]
        if self._lost_at is not None and self._give_up_at is None:
            due.append(self._lost_at + self._operations.keep_for)
        known = [at for at in due if at is not None]
        return max(0.0, min(known) - time.monotonic()) if known else None

    def _talk(self, fd: int, ready: int) -> None:
        if self._link.is_listener(fd):
            # The next agent may connect before the end of the killed agent's connection was read.
            self._serve()
            self._link.accept()
            if self._link.connected:
                self._lost_at = None
        elif self._link.is_agent(fd):
            if ready & select.EPOLLOUT:
                self._link.flush()
            if ready & ~select.EPOLLOUT:
                self._serve()

    def _serve(self) -> None:
        if not self._link.connected:
            return
        messages = self._link.receive()
        if messages is None:
            self._lost_at = time.monotonic()
            return
        for message in messages:
            self._operations.handle(message)

    def _check_end(self) -> None:
        if self._give_up_at is not None:
            return
        lost = self._lost_at is not None and (
            self._terminated or time.monotonic() >= self._lost_at + self._operations.keep_for
        )
        if lost and not self._operations.ending:
            self._operations.end_all()
        if self._operations.ending:
            self._give_up_at = time.monotonic() + _PATIENCE
            self._link.stop_listening()

    def _over(self) -> bool:
        if self._give_up_at is None:
            return False
        return self._operations.trees.empty or time.monotonic() >= self._give_up_at


def main(state_dir: str, agent_fd: int, *, remove_leftovers: bool, cgroup: str, move: bool) -> None:
    """Run the keeper of a state directory; return when it has ended.

    It first waits for an earlier keeper that is still ending its jobs, then ends the processes that a killed one left.
    """
    os.chdir("/")
    agent = socket.socket(fileno=agent_fd)
    agent.set_inheritable(False)
    lock = os.open(os.path.join(state_dir, "keeper.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    _become_subreaper()
    _go_first()
    use_all_descriptors()
    if os.path.exists("/proc/1"):  # Else /proc is mounted with hidepid, and would hide forked children, too.
        forbid_inspection()
    keeper = Keeper(state_dir, agent, cgroup=cgroup, move=move)
    keeper.end_leftovers(remove_sandboxes=remove_leftovers)
    gc.freeze()  # The objects of now are never garbage; a collection would copy pages shared with forked children.
    keeper.run()


def _become_subreaper() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


def _go_first() -> None:
    """Get real-time priority where that is allowed (as root), to end jobs with thousands of busy processes.

    The keeper hardly ever uses the processor. Its children start with ordinary priority (SCHED_RESET_ON_FORK).
    """
    if resource.getrlimit(resource.RLIMIT_RTTIME)[0] in range(_AMPLE_RTTIME):
        return  # The kernel would end the keeper after that much time at work.
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
