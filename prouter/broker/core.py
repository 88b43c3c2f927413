"""The broker without its sockets: messages, lost connections and the time go in, frames come out.

`Broker` makes the parts and connects them. The I/O shell (`prouter.broker.server`) and the simulation call its methods.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from prouter.broker.access.gate import Gate, Rules
from prouter.broker.agent_events import AgentEvents, read_agent_event
from prouter.broker.base.env import Env
from prouter.broker.base.inbox import Inbox
from prouter.broker.base.switch import Owner, Path
from prouter.broker.creations.creation import Creations
from prouter.broker.jobs.entry import Entry
from prouter.broker.jobs.history import History
from prouter.broker.jobs.ledger import Ledger
from prouter.broker.jobs.replies import Replies
from prouter.broker.jobs.waits import Waits
from prouter.broker.link_changes import LinkChanges
from prouter.broker.links.admission import Admission
from prouter.broker.links.dials import Dials
from prouter.broker.links.flood_guard import FloodGuard
from prouter.broker.links.forward import Forwarder
from prouter.broker.links.heartbeats import Heartbeats
from prouter.broker.links.hello import CLIENT
from prouter.broker.links.link import Link
from prouter.broker.links.links import Links
from prouter.broker.links.warm import sums
from prouter.broker.links.workers import Worker, Workers
from prouter.broker.removals import Removals
from prouter.broker.service import Service
from prouter.broker.store.restore import Saved, restore
from prouter.broker.store.rewriting import Rewriting
from prouter.broker.views.bridges import Bridges
from prouter.broker.views.broadcast import Broadcast
from prouter.broker.views.bulk import BulkCounts
from prouter.broker.views.directory import Directory
from prouter.broker.worker_sessions import WorkerSessions
from prouter.errors import ProtocolError
from prouter.fabric.frames import CALL, EVENT, PING, PONG, REPLY, Frame
from prouter.fabric.session import Lost, SessionState
from prouter.jobs import State

__all__ = ["Broker"]

log = logging.getLogger("prouter.broker")

_STANDSTILL = 1.0
"""Seconds by which a timer may be late. Beyond that this process stood still, and no peer's silence counts."""


class Broker:
    """The state machine of one broker process.

    Attributes:
        stopping: whether the broker was asked to end.
        extra_stats: gives figures of the shell, for `stats`.
        on_shutdown: called when a worker's ``shutdown`` asks the router to end; ends the broker by default.
    """

    def __init__(self, env: Env, saved: Saved, now: float) -> None:
        self.env = env
        self.stopping = False
        self.extra_stats: Callable[[], dict[str, float]] = dict
        self.on_shutdown: Callable[[], None] = self._stop
        self._started = now
        env.begin(now, saved.last_seen)
        self.inbox = Inbox(env, self._receive, self.malformed)
        self.heartbeats = Heartbeats(env)
        self.waits = Waits(env)
        self.forwarder = Forwarder(env)
        self.workers = Workers(env, self.heartbeats)
        self.links = Links(env, self.heartbeats)
        self.broadcast = Broadcast(env, self.workers, self.links)
        self.ledger = Ledger(
            env,
            tell=self.broadcast.workers,
            ended=self._job_ended,
            unneeded=self._unneeded,
            history=saved.history,
            last_event=saved.last_event,
            events=saved.events,
        )
        self.replies = Replies(env, self.ledger)
        self.directory = Directory(env, self.links, self.ledger)
        self.gate = Gate(env.settings.tokens, closed=env.settings.closed)
        self.admission = Admission(env, self.links, self.gate)
        self.dials = Dials(env, self.links, self.heartbeats, self._jobs_of)
        self.links.jobs_of = self._jobs_of
        self.flood_guard = FloodGuard(env, self.links, self.admission.exclusion, self.dials)
        self._make_jobs()
        self.service = self._make_service()
        self._listen(now)
        restore(saved, self.ledger, self.links, self.dials, self.creations.keys, now)
        self.creations.queued.restore(saved.queue)
        self.creations.restored(now)
        self.rewriting = Rewriting(env, self.ledger, self.links, self.dials, self.creations)
        self.history.start(now)
        env.timers.at(now + env.settings.workers_return, self._workers_complete)
        env.timers.at(now + env.settings.resume_timeout, self._links_complete)

    def _make_jobs(self) -> None:
        """Make what changes jobs: creations, events of agents, the bounds of the history."""
        env = self.env
        self.creations = Creations(env, self.links, self.dials, self.forwarder, self.ledger, self.replies)
        self.creations.queued.not_running = self.waits.job_ended
        self.ledger.is_up = self._is_up
        self.agent_events = AgentEvents(
            env,
            self.ledger,
            self.directory,
            self.creations,
            self.replies,
            self.forwarder,
            self.links,
            given=self.creations.given,
            not_running=self.waits.job_ended,
            leaves=self.links.leave,
        )
        self.history = History(env, self.ledger, self.links, self.forwarder)

    def _make_service(self) -> Service:
        self.bridges = Bridges(self.env, self.workers)
        return Service(
            self.env,
            self.links,
            self.forwarder,
            self.ledger,
            self.creations,
            self.replies,
            self.waits,
            self.directory,
            self.bridges,
            Removals(self.env, self.links, self.forwarder, self.ledger, self.creations.keys),
            stats=self.stats,
            stop=self._shutdown,
        )

    def _listen(self, now: float) -> None:
        """Make the listeners that the registries tell what becomes of workers and agents."""
        self.worker_sessions = WorkerSessions(
            self.env,
            self.links,
            self.service,
            self.bridges,
            BulkCounts(self.env, self.workers),
            self.broadcast,
            flooded=self.flood_guard.worker_flooded,
            started=now,
        )
        self.workers.listener = self.worker_sessions
        self.links.listener = LinkChanges(
            self.env,
            self.links,
            self.workers,
            self.broadcast,
            self.ledger,
            self.forwarder,
            self.dials,
            self.admission,
            self.creations,
            self.replies,
            started=now,
        )

    # -- what the I/O shell reports -----------------------------------------------------------------------------------

    def receive(self, path: Path, frames: list[Frame], now: float) -> None:
        """Handle a control message of an accepted peer."""
        path.heard = self.env.now = now
        if self.flood_guard.allows(path, frames, now):
            self.inbox.receive(path, frames, now)

    def agent_handshake(self, carrier: Any, rid: bytes, frames: list[Frame], now: float) -> None:
        """Handle a control message of an unauthenticated connection to the agents' port.

        Raises:
            ProtocolError: it is malformed.
        """
        self.env.now = now
        self.admission.handshake(carrier, rid, frames, now)

    def worker_handshake(self, carrier: Any, rid: bytes, frames: list[Frame], now: float) -> None:
        """Handle a control message of a worker's connection before its handshake.

        Raises:
            ProtocolError: it is malformed.
        """
        self.env.now = now
        self.workers.handshake(carrier, rid, frames, now)

    def malformed(self, path: Path | None, error: ProtocolError) -> None:
        """Count a malformed message (`Env.malformed`)."""
        self.env.malformed(path, error)

    def disconnected(self, path: Path, now: float) -> None:
        """Handle the end of a path's connection, after the frames that came before it."""
        self.env.now = now
        self.inbox.after(path, partial(self._closed, path), now)

    def _closed(self, path: Path, now: float) -> None:
        if path.owner is not None:
            path.owner.lost(path, "the connection was closed", now, closed=True)

    def worker_died(self, uid: str, now: float) -> None:
        """Handle the end of a worker's process."""
        self.env.now = now
        self.workers.gone(uid, "its process ended", now)

    def access_changed(self, rules: Rules, now: float) -> None:
        """Apply changed keys and invitations; agents with a revoked invitation lose their links."""
        self.env.now = now
        before = self.gate.rules.router_keys
        self.gate.change(rules)
        for link in list(self.links):
            if self.gate.is_revoked(link.info.admitted_by):
                self.links.drop(link, "its invitation was revoked", now)
        if rules.router_keys != before:
            self.broadcast.agents("keys", {"keys": list(rules.router_keys)})

    def excuse(self, seconds: float, now: float) -> None:
        """Take seconds in which the event loop did not listen off the silence of all peers."""
        self.heartbeats.excuse(seconds, now)

    def iterate(self, now: float) -> None:
        """Run timers and go on with the inbox; once per event loop iteration, after all that arrived was received."""
        self.env.now = now
        deadline = self.env.timers.deadline()
        if deadline is not None and deadline <= now:
            if now - deadline > _STANDSTILL:
                log.warning("event=standstill seconds=%.1f", now - deadline)
                self.heartbeats.forgive(now)
            self.env.timers.run(now, self.env.settings.bounds.iteration)
        self.inbox.iterate(now)

    def farewell(self, reason: str) -> None:
        """Say goodbye to all peers. They wait for the next broker."""
        peers: list[Worker | Link] = [*self.workers, *self.links]
        for peer in peers:
            if peer.path is not None:
                self.env.outbox.say(peer.path, peer.path.session.bye(reason))

    def stats(self, now: float) -> dict[str, float]:
        """Figures for metrics."""
        states: dict[str, float] = {}
        for link in self.links:
            states[f"links.{'up' if link.up else 'away'}"] = states.get(f"links.{'up' if link.up else 'away'}", 0) + 1
        return {
            "links.up": 0,
            "links.away": 0,
            **states,
            **sums(link.warm.figures for link in self.links if link.up),
            "workers": len(self.workers),
            "streams.fast": sum(worker.bulk for worker in self.workers),
            "uptime_seconds": now - self._started,
            "waits": len(self.waits),
            "inbox": len(self.inbox),
            "calls": self.service.running,
            "agent_calls": self.forwarder.pending,
            "creations": self.creations.pending,
            **self.creations.queued.stats(),
            "dials": len(self.dials),
            "messages.routed": self.env.switch.routed,
            "messages.dropped": self.env.switch.dropped,
            "events.last": self.ledger.events.last,
            **{f"jobs.{state}": count for state, count in self._count_jobs().items()},
            **self.extra_stats(),
            **{f"total.{name}": count for name, count in self.env.counts.items()},
        }

    # -- inside ---------------------------------------------------------------------------------------------------

    def _receive(self, path: Path, frame: Frame, now: float) -> None:
        """Handle a control frame of a peer whose turn it is in the inbox.

        Raises:
            ProtocolError: it is malformed.
        """
        owner, session = path.owner, path.session
        if owner is None:
            return
        if frame.type < CALL:
            self._session_frame(path, owner, frame, now)
        elif session.state is not SessionState.READY or owner.path is not path:
            return
        elif isinstance(owner, Worker):
            self.worker_sessions.receive(owner, frame, now)
        elif isinstance(owner, Link):
            self._agent_frame(owner, frame, now)

    def _session_frame(self, path: Path, owner: Owner, frame: Frame, now: float) -> None:
        session = path.session
        if session.state is SessionState.HELLO_SENT:
            self.dials.receive(path, frame, now)
            return
        if frame.type == PING and isinstance(owner, Link):
            session.pace(self.heartbeats.pace)
        answers, event = session.receive(frame, now)
        self.env.outbox.say(path, *answers)
        if isinstance(event, Lost):
            owner.left(path, event.reason, now)
        elif frame.type == PONG:
            self.directory.latency_measured(session.latency)
            if isinstance(owner, Link) and owner.measured():
                self.broadcast.workers("link.distance", {"connection": owner.connection, "far": owner.far})

    def _agent_frame(self, link: Link, frame: Frame, now: float) -> None:
        if frame.type == REPLY:
            self.forwarder.reply(link, frame, now)
        elif frame.type == EVENT:
            self.agent_events.receive(link, *read_agent_event(frame), now)
        else:
            raise ProtocolError(f"unexpected frame type {frame.type} from an agent")

    def _workers_complete(self, now: float) -> None:
        """Tell agents which workers there are, now that those of an earlier broker had time to come back."""
        self.broadcast.agents("workers", {"workers": [worker.uid for worker in self.workers]})

    def _links_complete(self, now: float) -> None:
        """Tell workers that they know all agents, now that every agent had time to link again."""
        self.broadcast.workers("links.complete", {})

    def _job_ended(self, entry: Entry) -> None:
        self.waits.job_ended(entry.uid)
        self.history.job_ended()
        self.creations.queued.job_ended(entry)

    def _count_jobs(self) -> dict[str, int]:
        return {state.value: self.ledger.table.tally.states[state.value] for state in State}

    def _is_up(self, connection: str) -> bool:
        link = self.links.get(connection)
        return link is not None and link.up

    def _unneeded(self, connection: str) -> None:
        link = self.links.get(connection)
        if link is not None and link.mode == CLIENT:
            self.dials.idle(link, self.env.now)

    def _jobs_of(self, connection: str) -> int:
        return self.ledger.table.tally.kept(connection) + self.creations.reserved(connection)

    @property
    def draining(self) -> bool:
        """Whether the router winds down."""
        return self.worker_sessions.draining

    def drain(self) -> None:
        """Wind the router down: workers tell everybody who asks whether they are ready."""
        if not self.draining:
            self.worker_sessions.draining = True
            self.broadcast.workers("draining", {})

    def _shutdown(self) -> None:
        self.drain()
        self.on_shutdown()

    def _stop(self) -> None:
        self.stopping = True
