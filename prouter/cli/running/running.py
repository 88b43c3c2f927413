"""One job from its creation to its removal, with its output on stdout and stderr and signals on their way to it.

The main thread does nothing but wait for messages: signals, and results of the threads that speak to the router. So a
signal counts at once, whatever the network does.
"""

from __future__ import annotations

import errno
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any

from prouter.cli.moving.progress import progress_bar
from prouter.cli.remote.exits import Exit, of_job
from prouter.cli.remote.failures import Failure, describe, note
from prouter.cli.remote.terminals import closed, write_all
from prouter.cli.running.browsers import address, open_in_browser
from prouter.cli.running.plans import Plan
from prouter.cli.running.queue_notes import QueueNotes
from prouter.client import Conflict, Job, JobInfo, NotFound, Router, RouterError, StartFailed, TimedOut

__all__ = ["Running"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOOK_EVERY = 0.5
"""Seconds after which a command that nobody reads from notices it."""
_OUTPUT = {"stdout": 1, "stderr": 2}
_UNREAD = (errno.EPIPE, errno.EIO)
"""What tells that the reader of the output is gone: of a pipe, of a terminal."""
_TOLD_BY_CODE = frozenset({"exited", "signaled", "timeout", "stopped", "removed"})
"""Reasons of an end that the exit code tells, or this command's user knows."""
_LAST = 3
"""The signal at which this command leaves at once."""


class Cancelled(Exception):
    """A signal ended a transfer."""


class Running:
    """Runs one job.

    Args:
        router: where; threads share it.
        plan: what.
    """

    def __init__(self, router: Router, plan: Plan) -> None:
        self._router = router
        self._plan = plan
        self._messages: SimpleQueue[tuple[str, Any, BaseException | None]] = SimpleQueue()
        self._busy: set[str] = set()
        self._cancelled = threading.Event()
        self._watched = [descriptor for descriptor in _OUTPUT.values() if not closed(descriptor)]
        self._job: Job | None = None
        self._started = False
        self._info: JobInfo | None = None
        self._error: BaseException | None = None
        self._signal: int | None = None
        self._count = 0
        self._broken = False
        self._removed = False

    def run(self) -> tuple[int, JobInfo | None]:
        """Run the job; return the exit code, and the job's info as it was last known.

        Raises:
            Failure: the router or this command failed.
        """
        with _signals(self._interrupted):
            self._spawn("set up", self._set_up)
            self._work()
            if self._plan.detach and self._started and not self._count:
                return 0, self._info
            self._spawn("finish", self._finish)
            self._work()
        return self._result(), self._info

    # -- messages -------------------------------------------------------------------------------------------------

    def _spawn(self, name: str, function: Callable[[], Any]) -> None:
        self._busy.add(name)

        def work() -> None:
            try:
                self._messages.put((name, function(), None))
            except BaseException as error:
                self._messages.put((name, None, error))

        threading.Thread(target=work, name=name, daemon=True).start()

    def _interrupted(self, number: int, _frame: FrameType | None) -> None:
        self._messages.put(("signal", number, None))

    def _work(self) -> None:
        """Handle messages until all threads are done."""
        while self._busy:
            try:
                name, value, error = self._messages.get(timeout=_LOOK_EVERY)
            except Empty:
                self._look()
                continue
            self._busy.discard(name)
            self._take(name, value, error)

    def _look(self) -> None:
        """End the job if nobody reads its output any more."""
        if not self._plan.detach and any(map(closed, self._watched)):
            self._break()

    def _break(self) -> None:
        """Stop the job, if it is not being stopped: nobody reads its output any more."""
        if not self._broken:
            self._broken = True
            if not self._count:
                self._end(Exit.BROKEN_PIPE - 128)

    def _take(self, name: str, value: Any, error: BaseException | None) -> None:
        if name == "signal":
            if value != signal.SIGHUP or not self._count:  # shells and the kernel may both tell that a terminal is gone
                self._end(value)
        elif name in _OUTPUT and isinstance(error, OSError) and not isinstance(error, RouterError):
            self._unwritten(name, error)
        elif name in ("stop", "kill") and isinstance(error, Conflict):
            return  # not started yet: it is stopped once it is
        elif name in ("stop", "kill", "remove") and isinstance(error, RouterError) and not isinstance(error, NotFound):
            raise Failure(describe(error) + self._left(), Exit.NOT_THE_JOB)  # logs and waits would go on for ever
        elif name == "set up":
            self._error = self._error or error  # output that could not be written may have been told before
            self._started = error is None
            if error is not None and self._job is not None and not isinstance(error, StartFailed):
                self._spawn("remove", self._remove)  # ends its logs; those of a failed start end by themselves
            if self._started and not self._plan.detach:
                assert self._job is not None
                self._spawn("wait", self._job.wait)
            if self._started and (self._count or self._error is not None):
                self._stop()
        elif name == "wait" and error is None:
            self._info = value
        elif name == "finish" and isinstance(error, Cancelled):
            self._error = Failure("a signal ended the download")
        elif error is not None and not isinstance(error, (Cancelled, NotFound)):
            self._error = self._error or error

    def _unwritten(self, name: str, error: OSError) -> None:
        """End the job: its output goes nowhere."""
        if error.errno in _UNREAD:
            self._break()
            return
        self._error = self._error or Failure(f"the job's {name} cannot be written: {error.strerror}")
        self._stop()

    # -- signals --------------------------------------------------------------------------------------------------

    def _end(self, number: int) -> None:
        """Stop the job; kill it when asked again, and leave when asked once more."""
        self._count += 1
        self._signal = self._signal or number
        self._cancelled.set()
        if self._count >= _LAST:
            left = f"; 'prouter rm {self._job.uid}' removes the job" if self._job is not None else ""
            raise Failure(f"left without waiting for the router{left}", 128 + self._signal)
        if self._count == 1 and sys.stderr.isatty() and not self._broken:
            note("stopping the job; once more kills it, and a third time leaves at once")
        self._stop()

    def _stop(self) -> None:
        job = self._job
        if job is None or "finish" in self._busy:
            return
        grace = self._plan.grace if self._count < 2 else 0.0
        self._spawn("stop" if self._count < 2 else "kill", lambda: job.stop(grace))

    # -- what threads do ------------------------------------------------------------------------------------------

    def _set_up(self) -> None:
        plan = self._plan
        job = self._router.create(
            plan.name,
            agent=plan.agent,
            where=plan.where,
            require=plan.require,
            resources=plan.resources,
            strategy=plan.strategy,
            template=plan.template,
            queue=plan.queue,
        )
        self._job = job
        wait = self._wait_for_agent(job)
        self._info = job.latest
        for local in plan.uploads:
            with progress_bar(f"upload {local}") as progress:
                job.upload(local, progress=self._watch(progress))
        if self._cancelled.is_set():
            raise Cancelled
        if not plan.detach:
            for name in _OUTPUT:
                self._spawn(name, lambda name=name: self._pass_on(job, name))  # type: ignore[misc]
        with QueueNotes(job):
            job.start(
                plan.args,
                env=plan.env,
                cwd=plan.cwd,
                expose=plan.expose,
                limits=plan.limits,
                options=plan.options,
                wait=wait,
            )
        self._info = job.latest
        if plan.wait is not None and job.latest.phase in ("queued", "starting"):
            return
        self._check_port(job)
        if plan.browse:
            url = address(job)
            if not open_in_browser(url):
                note(f"open {url}")

    def _wait_for_agent(self, job: Job) -> float | None:
        """Wait until an agent has the job, unless a signal comes; return how many seconds the start may take.

        Without uploads a job that is to be left alone soon is started while it is queued.
        """
        if job.latest.phase == "queued" and sys.stderr.isatty():
            note(f"no agent has space: the job waits in the queue, at position {job.latest.position}")
        wait, began = self._plan.wait, time.monotonic()
        while not self._cancelled.is_set():
            left = None if wait is None else max(0.0, began + wait - time.monotonic())
            if left == 0.0 and not self._plan.uploads:
                return 0.0
            try:
                job.wait_for_agent(_LOOK_EVERY)
            except TimedOut:
                continue
            return left
        raise Cancelled

    def _check_port(self, job: Job) -> None:
        if self._plan.port is not None and self._plan.port not in job.latest.ports:
            found = ", ".join(map(str, job.latest.ports)) or "no port"
            raise Failure(f"--port {self._plan.port}: the job listens on {found}, not on {self._plan.port}")

    def _watch(self, progress: Callable[[int, int | None], None]) -> Callable[[int, int | None], None]:
        """Return a callback that also ends a transfer once a signal came."""

        def called(done: int, total: int | None) -> None:
            if self._cancelled.is_set():
                raise Cancelled
            progress(done, total)

        return called

    def _pass_on(self, job: Job, name: str) -> None:
        """Write one log of the job to this command's descriptor, each byte once."""
        descriptor = _OUTPUT[name]
        with job.logs(name, follow=True, offset=0) as log:
            known = 0
            for piece in log:
                if log.dropped > known:
                    known = log.dropped  # the piece is the agent's line about it, not the job's output
                elif descriptor in self._watched:
                    write_all(descriptor, piece)
        if known:
            why = "the job wrote faster than they could be read (jobs.log_limit of its agent)"
            raise Failure(f"{known} bytes of the job's {name} are lost: {why}")

    def _finish(self) -> None:
        """Fetch what is wanted, and remove the job; if fetching fails the job stays."""
        job = self._job
        if job is None:
            return
        if self._plan.downloads and self._started and self._count < 2 and not self._broken:
            self._cancelled.clear()
            self._download(job)
        if not self._removed and (not self._plan.keep or not self._started):
            self._remove()

    def _remove(self) -> None:
        assert self._job is not None
        with suppress(NotFound):
            self._job.remove()
        self._removed = True

    def _download(self, job: Job) -> None:
        masks = [mask.removeprefix("./").rstrip("/") for mask in self._plan.downloads]
        with progress_bar("download") as progress:
            done = job.download(
                ".",
                self._plan.into,
                include=[*masks, *(f"{mask}/*" for mask in masks)],
                exclude=[".pagent.*"],
                progress=self._watch(progress),
            )
        if not done.files:
            note(f"--download: the job left no file that matches {' or '.join(masks)}")

    # -- the end --------------------------------------------------------------------------------------------------

    def _result(self) -> int:
        if self._broken and self._signal == Exit.BROKEN_PIPE - 128:
            return Exit.BROKEN_PIPE
        if self._signal is not None and not self._started:
            return 128 + self._signal
        if self._info is not None and self._info.reason == "agent_lost":
            raise Failure("the job ended because its agent was lost", Exit.NOT_THE_JOB)
        if self._error is not None:
            assert isinstance(self._error, Exception)
            raise Failure(describe(self._error) + self._left(), Exit.NOT_THE_JOB) from self._error
        if self._info is None or not self._info.ended:
            raise Failure("the job was removed by somebody else before it ended", Exit.NOT_THE_JOB)
        if self._info.reason is not None and self._info.reason not in _TOLD_BY_CODE:
            note(f"the job was ended: {self._info.error or self._info.reason}")
        return of_job(self._info)

    def _left(self) -> str:
        """Return the part of an error that says how to remove the job, if it is still there."""
        return f"; the job is still there: 'prouter rm {self._job.uid}'" if self._job and not self._removed else ""


@contextmanager
def _signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle the signals that end a command, unless they are ignored, as nohup has it."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, found in before.items():
        if found != signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, found in before.items():
            signal.signal(number, found)
