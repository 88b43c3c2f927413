"""Starts of jobs: from the request to a process whose server answers, or to a `StartFailed` that says why not.

A start runs in a greenlet of its own and goes on if its call is given up. `Job.started` gets its outcome.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gevent

from prouter.agent.expose.exposure import Exposure, NotReady, Plan, resolve
from prouter.agent.expose.ports import Port, again, reserve
from prouter.agent.expose.sizes import check_sizes
from prouter.agent.jobs.ends.ending import Ender
from prouter.agent.jobs.starts.spec import (
    effective_limits,
    options_for,
    refuse_impossible,
    reserved,
    spawn_spec,
    tree_limits,
    working_directory,
)
from prouter.agent.jobs.state.job import Job
from prouter.agent.jobs.state.outcome import failure_text
from prouter.agent.jobs.state.table import not_found
from prouter.agent.sandbox.scratch import SOCKET_NAME, Scratch, make_scratch
from prouter.agent.sandbox.socket_places import LONGEST_SOCKET, SocketPlaces
from prouter.errors import PRouterError, StartFailed
from prouter.jobs import JobRecord, State
from prouter.requests import Limits, StartRequest, digest
from prouter.runners.interface import Kept, Queued, Runner, Spawned
from prouter.runners.sockets import Address, Sockets
from prouter.template_requests import TemplateStart

__all__ = ["Starter"]

_SECOND_CHANCE = 5.0
"""Seconds that a start has at least when it goes on after a restart of the agent."""

_QUIET = 1.0
"""Seconds for which a start that waits is not told as queued."""

_NEXT_KILL = 5.0
"""Seconds between attempts to kill a job whose start has failed."""

_log = logging.getLogger("prouter.agent")


class Starter:
    """Starts the jobs of one agent.

    Args:
        runner_name: of the setting ``jobs.runner``.
        sockets: where unix sockets of jobs may be.
        environment: the variables of every job.
        home: HOME of jobs whose request does not say, ``agent`` or ``sandbox``.
        report_url: where the job with this uid reports its ports.
        kept: all that a later agent needs to know of a job.
        keep: gives that to the runner.
        runs: called when a job has got a process.
    """

    def __init__(
        self,
        runner: Runner,
        runner_name: str,
        sockets: SocketPlaces,
        ender: Ender,
        *,
        environment: Mapping[str, str],
        ceilings: Limits,
        home: str,
        report_url: Callable[[str], str],
        kept: Callable[[Job], dict[str, Any]],
        keep: Callable[[Job], None],
        runs: Callable[[], None],
    ) -> None:
        self._runner = runner
        self._runner_name = runner_name
        self._same_machine = runner.capabilities.same_machine
        self._sockets = sockets
        self._ender = ender
        self._environment = environment
        self._ceilings = ceilings
        self._home = home
        self._report_url = report_url
        self._kept = kept
        self._keep = keep
        self._runs = runs

    def begin(
        self,
        job: Job,
        request: StartRequest,
        request_id: str,
        said: StartRequest | TemplateStart | None = None,
        wait: float | None = None,
    ) -> bool:
        """Begin to start a NEW job; `Job.started` gets the outcome. The job stays as it is if this raises.

        Args:
            said: the request as it came, if it named a template.
            wait: seconds after which the request is answered if the start waits in a queue; None if it does not say.

        Returns:
            Whether it has begun; False if another call has, while the runner checked the request.

        Raises:
            NotFound: the job was removed meanwhile.
            InvalidRequest: a limit is above the agent's ceiling, the working directory does not exist, ``expose`` is
                impossible, no program can be started with the arguments, or the runner cannot do what is asked for.
        """
        plan = resolve(request)
        limits = effective_limits(request.limits, self._ceilings)
        refuse_impossible(request, limits, self._runner_name, self._runner.capabilities)
        options = options_for(request, self._runner_name)
        resources = reserved(request, job.record, self._runner.capabilities)
        self._runner.check(tree_limits(limits), resources, options)
        # `Runner.check` must not block. Where it does all the same, nothing starts twice, or after its removal.
        if job.removed is not None or job.record.state is State.CLOSED:
            raise not_found(job.uid)
        if job.start_id is not None:
            return False
        with job.sandbox.acting():
            cwd = working_directory(job.sandbox, request.cwd)
        check_sizes(request, plan, self._tokens(job, plan))
        job.request, job.limits, job.start_id = request, limits, request_id
        job.request_digest = digest(said or request)
        job.starting = gevent.spawn(self._answer, job, lambda: self._start(job, request, plan, cwd, wait))
        return True

    def adopt(self, job: Job, said: StartRequest | TemplateStart, request_id: str) -> None:
        """Take a start of a job that was warm, and runs: it sets the time limit alone, if it has one.

        Raises:
            InvalidRequest: the limit is above the agent's ceiling.
        """
        if isinstance(said, TemplateStart) and said.timeout is not None:
            job.limits = effective_limits(job.limits.model_copy(update={"timeout": said.timeout}), self._ceilings)
        job.start_id, job.request_digest = request_id, digest(said)
        self._keep(job)
        if not job.record.ended:
            self._ender.arm(job)

    def resume(self, job: Job, kept: Kept) -> None:
        """Go on with a job that outlived an earlier agent, and with its start if that was under way."""
        job.accepted.set()
        known = kept.spawned is not None or kept.queued is not None or kept.exit is not None
        if job.request is None or not known or job.record.ended:
            if job.start_id is not None and job.failure is None:
                job.started.set(job.record)
            return
        plan = resolve(job.request)
        exposure = job.exposure = self._exposure_again(job, plan, kept.record)
        if job.failure is not None:
            self._resume_failed(job, kept)
            return
        if kept.spawned is None:
            self._resume_queued(job, kept, plan, exposure)
            return
        if job.record.state is State.NEW:
            self._spawned(job, exposure, exposure.arguments(job.request.args), kept.spawned)
        else:
            self._runs()
            self._ender.arm(job)
        if kept.exit is not None:
            job.process_ended(kept.exit)
        if job.record.state is State.PENDING:
            left = kept.spawned.started_at + plan.timeout - time.time()
            job.starting = gevent.spawn(
                self._answer, job, lambda: self._await(job, exposure, max(left, _SECOND_CHANCE))
            )
        else:
            job.started.set(job.record)
            if job.exit is not None:
                self._ender.finish(job)

    def _resume_failed(self, job: Job, kept: Kept) -> None:
        """Go on to end a job whose start has failed, and which the earlier agent could not kill."""
        if kept.exit is not None:
            job.process_ended(kept.exit)
        job.starting = gevent.spawn(self._end_later, job)

    def _resume_queued(self, job: Job, kept: Kept, plan: Plan, exposure: Exposure) -> None:
        """Go on with a start that waited in a queue when the earlier agent died, or has failed there since."""
        if kept.exit is not None:
            job.process_ended(kept.exit)
        elif kept.queued is not None:
            job.queued(kept.queued)
            job.waits.set()
        assert job.request is not None
        args = exposure.arguments(job.request.args)
        job.starting = gevent.spawn(self._answer, job, lambda: self._go_on(job, plan, exposure, args))

    def _answer(self, job: Job, start: Callable[[], JobRecord]) -> None:
        """Run a start in its greenlet. Whatever happens, there is an outcome."""
        try:
            job.started.set(start())
        except StartFailed as error:
            job.started.set_exception(error)
        except Exception:
            _log.exception("event=start_broke job=%s", job.uid)
            job.started.set_exception(self._fail(job, "internal error of the agent; the agent's log has the details"))

    def _start(self, job: Job, request: StartRequest, plan: Plan, cwd: Path, wait: float | None) -> JobRecord:
        try:
            exposure = job.exposure = self._exposure(job, plan)
            scratch = job.scratch = self._scratch(job, plan)
            job.sandbox.hold()
            if not request.forward_stdout:
                job.make_logs()
            spec = spawn_spec(
                job,
                request,
                exposure,
                {**self._environment, **scratch.variables()},
                home=self._home,
                report_url=self._report_url(job.uid),
                cwd=cwd,
                record=self._kept(job),
                resources=reserved(request, job.record, self._runner.capabilities),
                options=options_for(request, self._runner_name),
                same_machine=self._same_machine,
            )
            if self._runner.capabilities.queues:
                job.queued(Queued(job.uid))
            placed = self._runner.spawn(spec, min(_QUIET, plan.timeout if wait is None else wait))
        except PRouterError as error:
            raise self._fail(job, error.detail) from error
        job.accepted.set()
        if isinstance(placed, Queued):
            job.queued(placed)
            self._keep(job)
        else:
            assert isinstance(placed, Spawned), f"the runner's spawn returned {placed!r}, not Spawned or Queued"
            job.has_started(placed)
        return self._go_on(job, plan, exposure, spec.argv)

    def _go_on(self, job: Job, plan: Plan, exposure: Exposure, args: list[str]) -> JobRecord:
        """Wait for a job's turn, if it is queued, and then for its server."""
        if job.ending is not None and not job.placed.is_set():
            # It was to end while the runner queued it. Whoever asked for that is told if it fails, as by `Ender.end`.
            with contextlib.suppress(PRouterError):
                self._ender.kill(job)
        job.placed.wait()
        if job.spawned is None:
            raise self._fail(
                job, "it was ended while it waited" if job.ending else "its turn in the queue did not come"
            )
        record = self._spawned(job, exposure, args, job.spawned)
        if job.ending is not None:
            raise self._fail(job, "it was ended while it started")
        if plan.awaited:
            return self._await(job, exposure, plan.timeout)
        if job.exit is not None:
            self._ender.finish(job)
        return record

    def _tokens(self, job: Job, plan: Plan) -> dict[str, str]:
        """The values of templates; the longest possible ones where they are not known yet."""
        place = Path("x" * LONGEST_SOCKET) if plan.port == "unix" else None
        tokens = self._exposing(job, plan, None, place).tokens
        return {**tokens, "{port}": "65535"} if plan.port == "assign" else tokens

    def _exposure(self, job: Job, plan: Plan) -> Exposure:
        port = reserve() if plan.port == "assign" else None
        place = None
        if plan.port == "unix":
            place = self._sockets.path(job.sandbox.root, job.sandbox.user, same_machine=self._same_machine)
        return self._exposing(job, plan, port, place)

    def _exposing(self, job: Job, plan: Plan, port: Port | None, place: Path | None) -> Exposure:
        user = job.sandbox.user
        return Exposure(
            plan,
            base_url=f"{job.record.path}/http/",
            sandbox=job.sandbox.root,
            connect=lambda address, timeout: self.connect(job, address, timeout),
            port=port,
            socket=place,
            owner=user.uid if user is not None else None,
        )

    def _scratch(self, job: Job, plan: Plan) -> Scratch:
        socket_name = plan.preset.socket_name if plan.preset is not None else SOCKET_NAME
        return make_scratch(job.sandbox, self._sockets if self._same_machine else None, socket_name)

    def _exposure_again(self, job: Job, plan: Plan, kept: Mapping[str, Any]) -> Exposure:
        port = again(kept["port"]) if kept["port"] is not None else None
        place = Path(kept["socket"]) if kept["socket"] is not None else None
        exposure = self._exposing(job, plan, port, place)
        for number in kept["reported"]:
            exposure.accept(number)
        return exposure

    def _spawned(self, job: Job, exposure: Exposure, args: list[str], spawned: Spawned) -> JobRecord:
        awaited = exposure.plan.awaited
        record = job.change(
            State.PENDING if awaited else State.RUNNING,
            args=args,
            pid=spawned.pid,
            started_at=spawned.started_at,
            node=spawned.node,
        )
        _log.info("event=job_started job=%s pid=%d awaited=%s", job.uid, spawned.pid, exposure.plan.port)
        self._runs()
        self._ender.arm(job)
        return record

    def _await(self, job: Job, exposure: Exposure, timeout: float) -> JobRecord:
        try:
            exposed = exposure.wait(lambda: self.sockets(job), timeout)
            if job.exit is not None or job.ending is not None:
                raise NotReady("its process ended as soon as it was ready")
        except NotReady as error:
            raise self._fail(job, str(error)) from None
        record = job.change(
            State.RUNNING,
            endpoint=exposed.address.endpoint(),
            ports=exposed.ports,
            path_mode=exposed.path_mode,
            host_mode=exposure.plan.host,
        )
        _log.info("event=job_ready job=%s at=%r path=%s", job.uid, str(exposed.address), exposed.path_mode)
        self._keep(job)
        return record

    def sockets(self, job: Job) -> Sockets:
        """The sockets that the job's processes listen on now, and those of other processes."""
        try:
            return self._runner.listeners(job.uid)
        except PRouterError:
            return Sockets([], [], [])  # The job has just ended; its start is about to hear of it.

    def connect(self, job: Job, address: Address, timeout: float) -> socket.socket:
        """Connect to the job's server. Arguments and errors as of `Runner.connect`."""
        port = job.exposure.port if job.exposure is not None else None
        assigned = port is not None and port.number == address.port
        return self._runner.connect(job.uid, address, timeout, assigned=assigned)

    def _fail(self, job: Job, why: str) -> StartFailed:
        """Kill what runs or waits of a job, make it FINISHED, and return the error for the caller.

        A job that cannot be killed becomes FINISHED later, when it has ended.
        """
        kill = job.accepted.is_set() and job.exit is None and not job.record.ended
        if kill:
            try:
                self._ender.kill(job)
            except PRouterError as error:
                why = f"{why}; {error.detail}"
        if job.failure is None:
            job.failure = f"job '{job.uid}' failed to start: {failure_text(job, why, killed=kill)}"
        if kill and job.exit is None:
            self._keep(job)
            job.starting = gevent.spawn(self._end_later, job)
        elif not job.record.ended:
            self._ender.finish(job)
        return StartFailed(job.failure, job=job.uid, state=job.record.state.value)

    def _end_later(self, job: Job) -> None:
        """Kill a job whose start has failed until no process of it is left, and make it FINISHED then."""
        while job.exit is None:
            gevent.sleep(_NEXT_KILL)
            with contextlib.suppress(PRouterError):  # `Ender.kill` has logged it.
                self._ender.kill(job)
        if not job.record.ended:
            self._ender.finish(job)
