"""The agent process: job manager, links to routers, relays, and their common life."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event

from prouter import __version__
from prouter.agent.identity import agent_uid, host_load, introduction
from prouter.agent.links import Links
from prouter.agent.manager import JobManager
from prouter.agent.relays.archives import ARCHIVE_KINDS
from prouter.agent.relays.connections import Connections
from prouter.agent.relays.files import FILE_KINDS
from prouter.agent.relays.logs import LogNews, LogStreams
from prouter.agent.relays.transfers import Transfers
from prouter.agent.runner import Exit, LocalRunner
from prouter.agent.service import Service
from prouter.config import AgentConfig
from prouter.directories import agent_state_dir
from prouter.errors import PRouterError
from prouter.fabric.calls import Request
from prouter.fabric.stream import Stream
from prouter.jobs import JobRecord, Reason
from prouter.requests import Limits

__all__ = ["run"]

log = logging.getLogger("prouter.agent")

_LOAD_INTERVAL = 5.0
_EXIT_FAILED = 1


class _AgentProcess:
    """Everything of one agent, wired together."""

    def __init__(self, config: AgentConfig, ready: Callable[[str], None]) -> None:
        self._config = config
        self._ready: Callable[[str], None] | None = ready
        self._stop = Event()
        self._status = 0
        self._alone_since = time.monotonic()
        state_dir = agent_state_dir(config)
        self.uid = agent_uid(config, state_dir)
        root = Path(config.jobs.root).absolute() if config.jobs.root else state_dir / "jobs"
        runner = LocalRunner(state_dir / "keeper", keep_for=config.jobs.keep_for, on_exit=self._exited)
        self.manager = JobManager(
            root=root,
            runner=runner,
            properties=config.properties,
            max_jobs=config.jobs.max,
            ceilings=Limits(**config.jobs.limits.model_dump()),
            log_limit=config.jobs.log_limit,
            on_change=self._changed,
            on_removed=self._removed,
        )
        self.connections = Connections(self.manager.record)
        self.log_news = LogNews()
        kinds = {**FILE_KINDS, **ARCHIVE_KINDS, "log": LogStreams(self.log_news).send}
        self.transfers = Transfers(self.manager, kinds, config.jobs.background_threads)
        self.service = Service(self.manager, self._tell_load)
        self.links = Links(self, config, self.uid)

    def run(self) -> int:
        """Live until told to stop; the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            gevent.signal_handler(number, self._stop.set)
        self.manager.open()
        endpoint = self.links.open()
        if endpoint is not None and self._ready is not None:
            self._ready(f"{self.uid} listen={endpoint}")
            self._ready = None
        while not self._stop.wait(_LOAD_INTERVAL):
            self._tell_load()
            self._check_alone()
        self._close()
        return self._status

    # -- what links need (links.Agent) --------------------------------------------------------------------------

    def introduce(self) -> dict[str, Any]:
        """See `links.Agent`."""
        about = introduction(self._config, self.uid, self.manager.incarnation, self.service.draining, __version__)
        return {**about, "keep_for": self._config.jobs.keep_for}

    def records(self) -> list[JobRecord]:
        """See `links.Agent`."""
        return self.manager.records()

    def load(self) -> dict[str, Any]:
        """See `links.Agent`."""
        running = sum(not record.ended for record in self.manager.records())
        return {"load": host_load(), "running": running, "draining": self.service.draining}

    def call(self, request: Request) -> dict[str, Any]:
        """See `links.Agent`."""
        return self.service.call(request)

    def open_stream(self, stream: Stream, target: dict[str, Any]) -> None:
        """See `links.Agent`."""
        if target.get("kind") == "http":
            self.connections.open(stream, str(target.get("job")))
        else:
            self.transfers.open(stream, target)

    def linked(self) -> None:
        """See `links.Agent`."""
        if self._ready is not None:
            self._ready(self.uid)
            self._ready = None

    def refused(self, code: str, text: str) -> None:
        """See `links.Agent`."""
        if self._config.client.exit_on_fail:
            log.error("event=exit_on_fail code=%s text=%r", code, text)
            self._status = _EXIT_FAILED
            self._stop.set()

    # -- what the manager reports -------------------------------------------------------------------------------

    def _exited(self, how: Exit) -> None:
        self.manager.job_exited(how)

    def _changed(self, record: JobRecord) -> None:
        self.links.tell("job", {"record": record.to_wire()})
        self.log_news.job_changed(record)
        if record.ended:
            self.connections.job_ended(record)

    def _removed(self, record: JobRecord) -> None:
        self.links.tell("job.removed", {"record": record.to_wire()})
        self.log_news.job_changed(record)

    # -- life ---------------------------------------------------------------------------------------------------

    def _tell_load(self) -> None:
        self.links.tell("load", self.load())

    def _check_alone(self) -> None:
        """End the jobs once no router has been there for too long."""
        now = time.monotonic()
        if self.links.up:
            self._alone_since = now
        elif now - self._alone_since > self._config.jobs.orphan_timeout and self.manager.records():
            log.warning("event=orphaned seconds=%g jobs=%d", now - self._alone_since, len(self.manager.records()))
            self.manager.remove_all(Reason.AGENT_LOST)

    def _close(self) -> None:
        log.info("event=agent_stops uid=%s", self.uid)
        keep = self._config.jobs.keep_for > 0
        self.manager.close(end_jobs=not keep)
        self.connections.close()
        self.links.close("the agent stops")
        gevent.sleep(0.05)


def run(config: AgentConfig, *, ready: Callable[[str], None]) -> int:
    """Run an agent until TERM or INT; the exit status.

    Args:
        config: the agent's configuration.
        ready: called once with the agent's uid when it is linked (or listens).
    """
    process = _AgentProcess(config, ready)
    try:
        return process.run()
    except PRouterError as error:
        log.error("event=agent_failed error=%r", error.detail)
        return _EXIT_FAILED
