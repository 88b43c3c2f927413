"""The agent process: it makes the job manager, links, relays and the control API, and connects them."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event

from prouter.agent.control_facts import ControlFacts
from prouter.agent.jobs.choice import jobs_root, keep_for, make_runner
from prouter.agent.jobs.manager import JobManager
from prouter.agent.jobs.sandbox_reports import SandboxReports
from prouter.agent.jobs.starts.inherited import environment_of_jobs
from prouter.agent.jobs.state.space import capacity, load_of
from prouter.agent.jobs.state.user_pool import make_users
from prouter.agent.jobs.usage_reports import UsageReports
from prouter.agent.leaving import leave
from prouter.agent.links.control import Control
from prouter.agent.links.death_notice import notice_for
from prouter.agent.links.fanout import Fanout
from prouter.agent.links.identity import Identity, host_load
from prouter.agent.links.links import Links
from prouter.agent.links.router_gate import RouterGate
from prouter.agent.links.router_link import RouterLink
from prouter.agent.relays.archives import ARCHIVE_KINDS, warn_of_missing_library
from prouter.agent.relays.connections import Connections
from prouter.agent.relays.files import FILE_KINDS
from prouter.agent.relays.logs import LogNews, LogStreams
from prouter.agent.relays.transfers import Transfers
from prouter.agent.service import Service
from prouter.config import AgentConfig, ConfigError, is_loopback, uses_curve
from prouter.config.directories import agent_state_dir
from prouter.errors import PRouterError
from prouter.fabric.stream import Stream
from prouter.jobs import JobRecord, Reason
from prouter.key_pairs import KeyPair
from prouter.keys.destinations import agent_pair, destinations
from prouter.keys.join_url import JoinUrl
from prouter.keys.known_routers import KnownRouter, KnownRouters
from prouter.process.cores import forbid_core_dumps, forbid_inspection
from prouter.process.descriptors import raise_descriptor_limit
from prouter.requests import Limits
from prouter.resources import machine, unbounded
from prouter.transport.backoff import Backoff
from prouter.transport.zeromq.context import destroy_context

__all__ = ["run"]

log = logging.getLogger("prouter.agent")

_LOAD_INTERVAL = 5.0
"""Seconds between `load` events while nothing changes."""
_LOAD_DELAY = 0.3
"""Seconds within which changes of the number of jobs make one `load` event."""
_SWITCH_INTERVAL = 0.001
"""Seconds for which a thread that packs or unpacks may delay the event loop (`sys.setswitchinterval`)."""
_CLOSE_TIMEOUT = 20.0
_LAST_WORDS = 0.5
"""Seconds that libzmq's thread has to send the goodbyes before the process ends."""
_EXIT_FAILED = 1
_JOIN_PATIENCE = 2.0
"""Seconds for which an agent with a refused invitation tries again."""


class _Agent:
    """The parts of one agent; the `Host` of its links."""

    def __init__(self, config: AgentConfig, ready: Callable[[str], None], join: JoinUrl | None) -> None:
        self._config = config
        self._ready: Callable[[str], None] | None = ready
        self._stop = Event()
        self._status = 0
        self._joins_until = time.monotonic() + _JOIN_PATIENCE
        self._load_due: gevent.Greenlet[[], None] | None = None
        self._orphaned: gevent.Greenlet[[], None] | None = None
        self._listens = ""
        self._fanout = Fanout("", (), None)
        self._state_dir = agent_state_dir(config)
        self._pair: KeyPair | None = None
        """This agent's own keys, if any of its links is encrypted."""
        self._known = KnownRouters(self._state_dir / "routers.json")
        if join is not None:
            self._known.join(join)
        self.identity: Identity
        self.manager = self._make_manager(self._state_dir)
        self.service = Service(self.manager, self._drained)
        servers = self.manager.servers
        self.connections = Connections(self.manager.record, servers, servers.exiting)
        self.log_news = LogNews(remote=not self._runner.capabilities.same_machine)
        kinds = {**FILE_KINDS, **ARCHIVE_KINDS, "log": LogStreams(self.log_news).send}
        self.transfers = Transfers(
            self.manager, kinds, config.jobs.background_threads, sync_uploads=config.jobs.sync_uploads
        )
        fabric = config.fabric
        self.usage_reports = UsageReports(self.manager, lambda *news: self.links.tell_usage(*news))
        self.sandbox_reports = SandboxReports(
            self.manager, lambda: self.links.wanting_sandboxes(), lambda *news: self.links.tell_sandboxes(*news)
        )
        self.links = Links(self, heartbeat=fabric.heartbeat, resume_timeout=fabric.resume_timeout)
        facts = ControlFacts(lambda: self.identity, self.links, self.manager)
        self.control = Control(info=facts.info, connections=facts.connections, jobs=facts.jobs, shutdown=self._stop.set)

    def _make_manager(self, state_dir: Path) -> JobManager:
        config = self._config
        self._users = make_users(config.jobs)
        self._runner = make_runner(config.jobs, state_dir)
        counted = unbounded() if self._runner.capabilities.reserves else machine()
        self._resources = {**counted, **config.jobs.resources}
        return JobManager(
            root=jobs_root(config.jobs, state_dir),
            runner=self._runner,
            runner_name=config.jobs.runner,
            properties=config.properties,
            max_jobs=config.jobs.max,
            resources=self._resources,
            ceilings=Limits(**config.jobs.limits.model_dump()),
            log_limit=config.jobs.log_limit,
            home=config.jobs.home,
            environ=environment_of_jobs(config.jobs),
            users=self._users,
            templates=config.jobs.pool,
            on_pool=lambda: self.links.tell_pool(self.manager.pool.figures),
            on_change=self._changed,
            on_removed=self._removed,
        )

    # -- life ---------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Run until a signal or the control API ends the agent; return the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            gevent.signal_handler(number, self._stop.set)
        if os.path.exists("/proc/1"):  # Else /proc is mounted with hidepid, and a keeper would not see who connects.
            forbid_inspection()
        self.manager.open()
        # After the keeper was started: its jobs keep the usual limits.
        forbid_core_dumps()
        forbid_inspection()
        raise_descriptor_limit()
        try:
            self._open()
            gevent.spawn(self.usage_reports.run)
            gevent.spawn(self.sandbox_reports.run)
            gevent.spawn(warn_of_missing_library)
            while not self._stop.wait(_LOAD_INTERVAL):
                self._tell_load()
        finally:
            self._close()
        return self._status

    def _open(self) -> None:
        config = self._config
        self.identity = Identity.of(config, self._state_dir, self.manager.incarnation)
        log.info("event=agent_starts agent=%s name=%r", self.identity.uid, self.identity.name)
        self._await_routers()
        if config.server.enabled:
            self._listen()
        if config.control.enabled:
            url = self.control.open(config.control.interface, config.control.port)
            self._listens += f" control={url}"
            log.info("event=control_open url=%s", url)
        if config.client.enabled:
            self._dial()
        else:
            self._tell_ready()

    def _listen(self) -> None:
        """Let routers dial this agent."""
        server = self._config.server
        pair = agent_pair(self._config, self._state_dir) if uses_curve(server) else None
        endpoint = self.links.listen(server.interface, server.port, RouterGate.of(self._config), pair)
        self._listens += f" listen={endpoint}"
        log.info("event=listening endpoint=%s key=%s", endpoint, pair.public if pair is not None else "none")
        if pair is None and not is_loopback(server.interface):
            text = "tokens, files and the jobs' traffic can be read and changed on the way"
            log.warning("event=links_not_encrypted setting=server.insecure endpoint=%s text=%r", endpoint, text)

    def _dial(self) -> None:
        """Link to all routers of the configuration and to those that were joined."""
        client = self._config.client
        routers = destinations(self._config, self._known)
        if any(router.keys for router in routers):
            self._pair = agent_pair(self._config, self._state_dir)
        self._leave_death_notice(routers)
        known = {router.address: router for router in routers}
        self._fanout = Fanout(self.identity.uid, list(known), client.fanout)

        def dial(address: str) -> None:
            backoff = Backoff(client.reconnect_delay, client.longest_reconnect_delay)
            try:
                self.links.dial(known[address], self._pair, backoff)
            except ValueError as error:
                raise ConfigError(f"client.address: {error}") from error

        for address in self._fanout.chosen:
            dial(address)
        if self._fanout.partial:
            gevent.spawn(self._fanout.run, self.links.is_up, dial, self.links.give_up)

    def _leave_death_notice(self, routers: Sequence[KnownRouter]) -> None:
        """Leave the death notice, because routers cannot tell a dead agent from a broken network by themselves."""
        left = notice_for(routers, self._pair, uid=self.identity.uid, incarnation=self.identity.incarnation)
        self._runner.leave_death_notice(left.argv, left.environment, left.input)

    def _tell_ready(self) -> None:
        """Say once that the agent is ready: it is linked, or it waits to be dialled."""
        ready, self._ready = self._ready, None
        if ready is not None:
            ready(self.identity.uid + self._listens)

    def _close(self) -> None:
        """End the jobs or leave them to the keeper, and say goodbye. The keeper does what takes too long."""
        keep = keep_for(self._config.jobs, self._runner) > 0
        log.info("event=agent_stops jobs=%d kept=%s", len(self.manager.records()), keep)
        if self._orphaned is not None:
            self._orphaned.kill()
        leave(self.links, self.service, comes_back=keep)
        with gevent.Timeout(_CLOSE_TIMEOUT, False):  # type: ignore[arg-type]
            self.manager.close(end_jobs=not keep)
        self.connections.close()
        self.links.close("the agent stops")
        self.log_news.close()
        self.transfers.close()
        self.control.close()

    # -- what links need (router_link.Host) ---------------------------------------------------------------------------

    def hello(self) -> dict[str, Any]:
        """Return the HELLO body of this agent, without a token."""
        jobs = self._config.jobs
        return {
            **self.identity.introduction(),
            "capacity": self._capacity(),
            "draining": self.service.draining,
            "templates": list(jobs.pool),
            "template_resources": {name: one.resources for name, one in jobs.pool.items() if one.resources},
            "keep_for": keep_for(jobs, self._runner),
            "orphan_timeout": jobs.orphan_timeout,
            "routers": len(self._fanout.chosen),
            "partial": self._fanout.partial,
        }

    def _capacity(self) -> dict[str, Any]:
        """How many jobs may live at the same time, whether that is the number of users for them, and the resources."""
        users = self._users.size if self._users is not None else None
        return capacity(self._config.jobs.max, users, self._resources)

    def records(self) -> list[JobRecord]:
        """Return the records of all jobs."""
        return self.manager.records()

    def link_up(self, link: RouterLink) -> None:
        """Report the load to a router that is linked, and cancel the end of jobs without a router."""
        if self._orphaned is not None:
            self._orphaned.kill(block=False)
            self._orphaned = None
        link.peer.notify("load", self._load())
        link.tell_pool(self.manager.pool.figures(link.connection))
        self.manager.pool.serve(link.connection)
        self.manager.pool.accept(not self.service.draining)
        self.links.tell_routers()
        self.usage_reports.forget()
        self.sandbox_reports.forget()
        self._tell_ready()

    def link_down(self, link: RouterLink, reason: str) -> None:
        """Prepare to end the jobs if no router is left; tell those that are."""
        self.links.tell_routers()
        if not self.links.any_up:
            self._await_routers()

    def link_failed(self, link: RouterLink, reason: str, *, refused: bool) -> None:
        """End the process if it has to link at the first attempt, or an invitation was refused."""
        # A router learns of a new invitation within half a second, so the first refusals may be too early.
        joining = refused and self._known.is_joining(link.address) and time.monotonic() > self._joins_until
        conclusive = refused or link.key_turn >= len(link.keys)  # Not before each known key was tried.
        if link.address and ((self._config.client.exit_on_fail and conclusive) or joining):
            event = "join_failed" if joining else "exit_on_fail"
            log.error("event=%s router=%s reason=%r", event, link.address, reason)
            self._status = _EXIT_FAILED
            self._stop.set()

    def router_keys(self, link: RouterLink, keys: Sequence[str]) -> None:
        """Store the keys of a router that accepted this agent."""
        try:
            self._known.accepted(link.address, keys)
        except ConfigError as error:
            log.error("event=router_not_stored router=%s reason=%r", link.address, str(error))
        if keys:
            gevent.spawn(self._renew_death_notice)

    def _renew_death_notice(self) -> None:
        """Leave the notice with the keys that routers have now."""
        try:
            self._leave_death_notice(destinations(self._config, self._known))
        except (ConfigError, PRouterError) as error:
            log.error("event=death_notice_not_left reason=%r", str(error))

    def carry_out(self, op: str, args: dict[str, Any]) -> dict[str, Any]:
        """Carry out a router's call."""
        return self.service.carry_out(op, args)

    def open_stream(self, stream: Stream, target: dict[str, Any]) -> None:
        """Hand a stream to the relay for its kind of target."""
        kind = target.get("kind")
        if kind == "http":
            self.connections.open(stream, str(target.get("job")))
        elif kind == "tcp":
            self.connections.open_port(stream, str(target.get("job")), target.get("port"))
        else:
            self.transfers.open(stream, target)

    def _await_routers(self) -> None:
        """Have the jobs end after `jobs.orphan_timeout` unless a router is linked by then."""
        if self._orphaned is None:
            self._orphaned = gevent.spawn_later(self._config.jobs.orphan_timeout, self._end_orphans)

    def _end_orphans(self) -> None:
        self._orphaned = None
        log.warning("event=orphaned jobs=%d after=%g", len(self.manager.records()), self._config.jobs.orphan_timeout)
        self.manager.remove_all(Reason.AGENT_LOST)
        if not self.links.any_up:
            self._await_routers()

    # -- what the job manager reports ---------------------------------------------------------------------------

    def _changed(self, record: JobRecord) -> None:
        self.links.tell_job(record)
        self.log_news.job_changed(record)
        if record.ended:
            self.connections.job_ended(record)
        self._tell_load_after(record)

    def _removed(self, record: JobRecord) -> None:
        self.links.tell_job(record, "job.removed")
        self.log_news.job_changed(record)
        self.connections.job_ended(record)
        self._tell_load_after(record)

    def _tell_load_after(self, record: JobRecord) -> None:
        """Tell the load at once if a slot or resources are free again, so that a router knows of them with the end."""
        if record.ended and (record.resources or self._capacity()["max"] is not None):
            self._tell_load()
        else:
            self._tell_load_soon()

    def _load(self) -> dict[str, Any]:
        return load_of(self.manager.records(), host_load(), draining=self.service.draining)

    def _tell_load(self) -> None:
        self._load_due = None
        self.links.tell("load", self._load())

    def _drained(self) -> None:
        self.manager.pool.accept(not self.service.draining)
        self._tell_load()

    def _tell_load_soon(self) -> None:
        if self._load_due is None:
            self._load_due = gevent.spawn_later(_LOAD_DELAY, self._tell_load)


def run(config: AgentConfig, *, ready: Callable[[str], None], join: JoinUrl | None = None) -> int:
    """Run an agent until SIGTERM or SIGINT; return the exit status.

    Args:
        config: the agent's configuration.
        ready: called once, when the agent is linked first, or listens only: with its uid, followed by
            `` listen=tcp://HOST:PORT`` and `` control=http://HOST:PORT`` where it has those.
        join: an invitation to a router. The agent remembers the router once it has accepted, and ends if it refuses.

    Raises:
        ConfigError: it could never be linked.
    """
    if not config.client.enabled and not config.server.enabled:
        raise ConfigError("client.enabled: both this and server.enabled are off; no router could ever use the agent")
    sys.setswitchinterval(_SWITCH_INTERVAL)
    try:
        return _Agent(config, ready, join).run()
    except PRouterError as error:
        log.error("event=agent_failed error=%r", error.detail)
    except OSError as error:
        log.error("event=agent_failed error=%r", str(error))
    finally:
        destroy_context(_LAST_WORDS)
    return _EXIT_FAILED
