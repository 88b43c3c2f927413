"""The broker without its sockets: messages, lost connections and the time in, frames out.

`Broker` wires the parts together and is what the I/O shell, or a simulation, talks to.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

from prouter.broker.access.gate import Gate, Rules
from prouter.broker.base.env import Env
from prouter.broker.base.inbox import Inbox
from prouter.broker.base.switch import Path
from prouter.broker.jobs.creation import Creations
from prouter.broker.jobs.entry import Entry
from prouter.broker.jobs.history import History
from prouter.broker.jobs.ledger import Ledger
from prouter.broker.jobs.waits import Waits
from prouter.broker.links.admission import Admission
from prouter.broker.links.dials import Dials
from prouter.broker.links.forward import Forwarder
from prouter.broker.links.heartbeats import Heartbeats
from prouter.broker.links.hello import CLIENT
from prouter.broker.links.links import Link, Links
from prouter.broker.links.workers import Worker, Workers
from prouter.broker.service import Service
from prouter.broker.store.restore import Saved, restore
from prouter.broker.store.rewriting import Rewriting
from prouter.broker.views.announcements import Announcements, read_announcement
from prouter.broker.views.bridges import Bridges
from prouter.broker.views.bulk import BulkCounts
from prouter.broker.views.directory import Directory
from prouter.errors import ProtocolError, PRouterError
from prouter.fabric.calls import Request, event_frame, read_event
from prouter.fabric.frames import CALL, EVENT, PONG, REPLY, Frame
from prouter.fabric.session import Lost, SessionState

__all__ = ["Broker"]

log = logging.getLogger("prouter.broker")

_LONGEST_PAUSE = 1.0
"""Seconds for which an agent that sends too many bytes is not read at once."""
_OVERFLOW_PAUSE = 0.02
"""Seconds for which an agent is not read after a message of it had to be dropped."""
_MESSAGE_COST = 256
"""Bytes that a dropped message counts for beside its own: reading it took time."""
_LINKS = 200
"""Links in one message to a worker."""
_STANDSTILL = 1.0
"""Seconds a timer may be late before this process counts as having stood still, so that nobody's silence counts."""


class Broker:
    """See the module's docstring.

    Attributes:
        stopping: whether the broker was asked to end.
        draining: whether the router winds down.
        extra_stats: figures of the shell, for `stats`.
        on_shutdown: does what a ``shutdown`` call asks for; ends the broker itself unless somebody else drains the
        router.
    """

    def __init__(self, env: Env, saved: Saved, now: float) -> None:
        self.env = env
        self.stopping = False
        self.draining = False
        self.extra_stats: Callable[[], dict[str, float]] = dict
        self.on_shutdown: Callable[[], None] = self._stop
        self._started = now
        env.begin(now, saved.last_seen)
        self.inbox = Inbox(env, self._receive, self.malformed)
        self.heartbeats = Heartbeats(env)
        self.waits = Waits(env)
        self.forwarder = Forwarder(env)
        self.workers = Workers(env, self.heartbeats, self)
        self.links = Links(env, self.heartbeats, self)
        self.ledger = Ledger(
            env,
            tell=self._tell_workers,
            ended=self._job_ended,
            unneeded=self._unneeded,
            last_event=saved.last_event,
            events=saved.events,
        )
        self.directory = Directory(env, self.links, self.ledger)
        self.gate = Gate(env.settings.tokens, closed=env.settings.closed)
        self.admission = Admission(env, self.links, self.gate)
        self.dials = Dials(env, self.links, self.heartbeats, self._jobs_of)
        self.links.jobs_of = self._jobs_of
        self.creations = Creations(env, self.links, self.dials, self.forwarder, self.ledger)
        self.announcements = Announcements(
            env, self.ledger, self.directory, self.creations, self.forwarder, self.waits.job_ended
        )
        self.history = History(env, self.ledger, self.links, self.forwarder)
        self.bridges = Bridges(env, self.workers)
        self.bulk = BulkCounts(env, self.workers)
        self.service = Service(
            env,
            self.links,
            self.forwarder,
            self.ledger,
            self.creations,
            self.waits,
            self.directory,
            self.bridges,
            stats=self.stats,
            stop=self._shutdown,
        )
        restore(saved, self.ledger, self.links, self.dials, self.creations, now)
        self.rewriting = Rewriting(env, self.ledger, self.links, self.dials, self.creations)
        self.history.start(now)
        env.timers.at(now + env.settings.workers_return, self._workers_complete)
        env.timers.at(now + env.settings.resume_timeout, self._links_complete)

    # -- what the shell reports -----------------------------------------------------------------------------------

    def receive(self, path: Path, frames: list[Frame], now: float) -> None:
        """A control message from a known path."""
        path.heard = self.env.now = now
        if self._allowed(path, frames, now):
            self.inbox.receive(path, frames, now)

    def agent_stranger(self, carrier: Any, rid: bytes, frames: list[Frame], now: float) -> None:
        """A control message over a connection to the agents' port whose peer is not accepted.

        Raises:
            ProtocolError: it is malformed.
        """
        self.env.now = now
        self.admission.stranger(carrier, rid, frames, now)

    def worker_stranger(self, carrier: Any, rid: bytes, frames: list[Frame], now: float) -> None:
        """A control message over a worker's connection that is not accepted.

        Raises:
            ProtocolError: it is malformed.
        """
        self.env.now = now
        self.workers.stranger(carrier, rid, frames, now)

    def malformed(self, path: Path | None, error: ProtocolError) -> None:
        """A message that is none; see `Env.malformed`."""
        self.env.malformed(path, error)

    def disconnected(self, path: Path, now: float) -> None:
        """The connection under a path was closed."""
        self.env.now = now
        self.inbox.after(path, partial(self._closed, path), now)

    def _closed(self, path: Path, now: float) -> None:
        if path.owner is not None:
            path.owner.lost(path, "the connection was closed", now, closed=True)

    def overflowed(self, source: Path, size: int, now: float) -> None:
        """A message of `source` was dropped, since too much of it waits for a peer that takes less.

        Honest peers stop when their streams' windows are full. An agent is read more slowly; one that goes on is none.
        """
        self.env.now = now
        self.env.counts["overflowed"] += 1
        self.env.counts["overflowed_bytes"] += size
        if not isinstance(source.owner, Link):
            return
        source.overflow += size + _MESSAGE_COST
        if source.overflow > self.env.settings.bounds.overflow:
            self._cut_off(source, "it sends too much for workers that do not take it", now)
        else:
            self.env.shell.pause(source, _OVERFLOW_PAUSE)

    def unfinished(self, path: Path, now: float) -> None:
        """An agent left much of a message unfinished, while others did so, too: its connection is closed."""
        self.env.now = now
        if path.owner is not None:
            path.owner.lost(path, "it does not finish its messages", now, closed=True)

    def ahead(self, path: Path, now: float) -> None:
        """An agent that is to be read slowly sent much more meanwhile: its connection is closed."""
        self.env.now = now
        self._cut_off(path, "it sends on although the router reads it slowly", now)

    def relieved(self, target: Path, sources: list[Path], now: float) -> None:
        """There is room for what `sources` send to `target`: streams between them resume, as over a new path."""
        for source in sources:
            source.overflow = 0
            pair = (source.owner, target.owner)
            worker = next((owner for owner in pair if isinstance(owner, Worker)), None)
            link = next((owner for owner in pair if isinstance(owner, Link)), None)
            if worker is not None and worker.path is not None and link is not None and link.path is not None:
                self.env.outbox.say(worker.path, event_frame("link.up", link.describe()))

    def worker_died(self, uid: str, now: float) -> None:
        """A watched process has ended."""
        self.env.now = now
        self.workers.gone(uid, "its process ended", now)

    def access_changed(self, rules: Rules, now: float) -> None:
        """Keys or invitations are other ones: agents that hold a revoked invitation lose their links."""
        self.env.now = now
        before = self.gate.rules.router_keys
        self.gate.change(rules)
        for link in list(self.links):
            if self.gate.is_revoked(link.info.admitted_by):
                self.links.drop(link, "its invitation was revoked", now)
        if rules.router_keys != before:
            self._tell_agents("keys", {"keys": list(rules.router_keys)})

    def excuse(self, seconds: float, now: float) -> None:
        """The loop was kept from listening for so long: by its own work, or by others that had the processor."""
        self.heartbeats.excuse(seconds, now)

    def turn(self, now: float) -> None:
        """Once per turn of the loop, after everything that had arrived was received."""
        self.env.now = now
        deadline = self.env.timers.deadline()
        if deadline is not None and deadline <= now:
            if now - deadline > _STANDSTILL:
                log.warning("event=standstill seconds=%.1f", now - deadline)
                self.heartbeats.forgive(now)
            self.env.timers.run(now, self.env.settings.bounds.turn)
        self.inbox.turn(now)

    def farewell(self, reason: str) -> None:
        """Tell everybody that this broker ends; they wait for the next."""
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
            "workers": len(self.workers),
            "streams.fast": sum(worker.bulk for worker in self.workers),
            "uptime_seconds": now - self._started,
            "waits": len(self.waits),
            "inbox": len(self.inbox),
            "calls": self.service.running,
            "agent_calls": self.forwarder.pending,
            "creations": self.creations.pending,
            "dials": len(self.dials),
            "messages.routed": self.env.switch.routed,
            "messages.dropped": self.env.switch.dropped,
            "events.last": self.ledger.events.last,
            **{f"jobs.{state}": count for state, count in self.ledger.table.index.count_states().items()},
            **self.extra_stats(),
            **{f"total.{name}": count for name, count in self.env.counts.items()},
        }

    # -- links (LinkListener) -------------------------------------------------------------------------------------

    def link_up(self, link: Link, now: float) -> None:
        """Tell the agent who the workers are, the workers that it is there, and go on with what waited for it."""
        self.ledger.meet(link, self.dials.address_of(link))
        if now - self._started < self.env.settings.workers_return:
            for worker in self.workers:
                self.forwarder.tell(link, "worker.up", {"worker": worker.uid})
        else:
            self.forwarder.tell(link, "workers", {"workers": [worker.uid for worker in self.workers]})
        self._tell_workers("link.up", link.describe())
        self.ledger.agent_changed(link, "up")
        self.forwarder.link_up(link)
        self.creations.link_up(now)

    def link_down(self, link: Link, reason: str, now: float) -> None:
        """The agent is away: streams and calls wait for it."""
        self._tell_workers("link.down", {"connection": link.connection, "reason": reason, "gone": False})
        self.ledger.agent_changed(link, "down")
        self.forwarder.link_down(link, now)
        if link.mode == CLIENT:
            self.dials.link_down(link, now)
        self.admission.rival_lost(link, now)

    def link_gone(self, link: Link, reason: str, now: float) -> None:
        """The agent will not come back: nor will its jobs and streams."""
        self._tell_workers("link.down", {"connection": link.connection, "reason": reason, "gone": True})
        self._lose_jobs(link, reason, now)
        self.ledger.agent_changed(link, "gone")
        self.forwarder.link_gone(link, reason, now)
        self.dials.link_gone(link)
        self.admission.rival_lost(link, now)

    def _lose_jobs(self, link: Link, reason: str, now: float) -> None:
        """Its jobs are lost with it: some now, the others in the next turns of the loop, unless it is back by then."""
        if self.links.get(link.connection) is not None:
            return
        some = set(islice(self.ledger.table.live(link.connection), self.env.settings.bounds.turn))
        if some:
            self.ledger.lose(link.connection, some, reason)
        if self.ledger.table.live(link.connection):
            self.env.timers.at(now, partial(self._lose_jobs, link, reason))
        else:
            self.ledger.part(link)

    def link_receive(self, link: Link, frame: Frame, now: float) -> None:
        """A reply or event of an agent."""
        if frame.type == REPLY:
            self.forwarder.reply(link, frame, now)
        elif frame.type == EVENT:
            self.announcements.receive(link, *read_announcement(frame), now)
        else:
            raise ProtocolError(f"unexpected frame type {frame.type} from an agent")

    # -- workers (WorkerListener) -----------------------------------------------------------------------------------

    def worker_greeting(self) -> dict[str, Any]:
        """What a worker is welcomed with."""
        settings = self.env.settings
        return {
            "router": {**settings.auth, "platform": settings.platform},
            "incarnation": self.env.incarnation,
            "draining": self.draining,
        }

    def worker_up(self, worker: Worker, now: float) -> None:
        """It hears of all links, in parts as there may be many, and agents resume their streams with it."""
        if worker.path is not None:
            links = iter([link.describe() for link in self.links])
            complete = self.env.now - self._started >= self.env.settings.resume_timeout
            left = len(self.links)
            while left >= 0:
                part = list(islice(links, _LINKS))
                left -= _LINKS
                body = {"links": part, "last": left < 0, "complete": complete}
                self.env.outbox.say(worker.path, event_frame("links", body))
        self._tell_agents("worker.up", {"worker": worker.uid})
        self.bulk.tell()

    def worker_gone(self, worker: Worker, reason: str, now: float) -> None:
        """Agents end their streams with it."""
        self.service.worker_gone(worker)
        self.bulk.tell()
        self._tell_agents("worker.down", {"worker": worker.uid})

    def worker_receive(self, worker: Worker, frame: Frame, now: float) -> None:
        """A call or event of a worker."""
        if frame.type == CALL:
            todo = worker.responder.receive(frame)
            if isinstance(todo, Request):
                self._carry_out(worker, todo, now)
            elif todo is not None and worker.path is not None:
                self.env.outbox.say(worker.path, todo)
        elif frame.type == EVENT:
            name, body = read_event(frame)
            if name == "waits":
                self.service.keep_waits(worker, _texts(body.get("ids")))
            elif name == "wait.cancel":
                self.service.cancel_wait(worker, str(body.get("id")))
            elif name == "bridges":
                self.bridges.told(worker, body)
            elif name == "bulk":
                self.bulk.told(worker, body)
            elif name == "strays":
                self._flooded(str(body.get("connection")), now)
        else:
            raise ProtocolError(f"unexpected frame type {frame.type} from a worker")

    def _flooded(self, connection: str, now: float) -> None:
        """A worker is kept busy by what an agent sends it for no stream."""
        link = self.links.get(connection)
        if link is not None and link.path is not None:
            self._cut_off(link.path, "it floods workers with frames that lead to no stream", now)

    def _cut_off(self, path: Path, reason: str, now: float) -> None:
        """Give up the path of a peer that floods others; an agent has to wait before it is heard again."""
        self.env.counts["floods"] += 1
        if isinstance(path.owner, Link):
            info = path.owner.info
            self.admission.exclusion.cut_off(info.uid, info.admitted_by, now)
            self.dials.discourage(path.owner)
        if path.owner is not None:
            path.owner.lost(path, reason, now, closed=True)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _receive(self, path: Path, frame: Frame, now: float) -> None:
        owner, session = path.owner, path.session
        if owner is None:
            return
        if frame.type >= CALL:
            if session.state is SessionState.READY:
                owner.receive(path, frame, now)
            return
        if session.state is SessionState.HELLO_SENT:
            owner.receive(path, frame, now)
            return
        answers, event = session.receive(frame, now)
        self.env.outbox.say(path, *answers)
        if isinstance(event, Lost):
            owner.left(path, event.reason, now)
        elif frame.type == PONG:
            self.directory.latency_measured(session.latency)
            if isinstance(owner, Link) and owner.measured():
                self._tell_workers("link.distance", {"connection": owner.connection, "far": owner.far})

    def _carry_out(self, worker: Worker, request: Request, now: float) -> None:
        try:
            self.service.call(worker, request, now)
        except Exception:
            log.exception("event=call_failed op=%s worker=%s", request.op, worker.uid)
            self.service.failed(worker, request, PRouterError(f"{request.op} failed"), now)

    def _allowed(self, path: Path, frames: list[Frame], now: float) -> bool:
        """Whether an agent keeps to its rate of control frames; one that does not has to link again."""
        if path.routes is self.env.switch.agents:
            return True
        bounds = self.env.settings.bounds
        size = sum(len(frame.payload) for frame in frames)
        path.debt = max(0.0, path.debt - (now - path.refilled) * bounds.control_bytes) + size
        if path.debt > bounds.control_bytes / 4:
            self.env.shell.pause(path, min(_LONGEST_PAUSE, path.debt / bounds.control_bytes))
        path.allowance = min(4.0 * bounds.frames, path.allowance + (now - path.refilled) * bounds.frames)
        path.refilled = now
        path.allowance -= max(1, len(frames))
        if path.allowance >= 0:
            return True
        self._cut_off(path, "it sends too much", now)
        return False

    def _tell_workers(self, name: str, body: dict[str, Any]) -> None:
        frame = event_frame(name, body)
        for worker in self.workers:
            if worker.path is not None:
                self.env.outbox.say(worker.path, frame)

    def _tell_agents(self, name: str, body: dict[str, Any]) -> None:
        frame = event_frame(name, body)
        for link in self.links:
            if link.path is not None:
                self.env.outbox.say(link.path, frame)

    def _workers_complete(self, now: float) -> None:
        """Workers of the broker before had time to come back: those that did not are gone."""
        self._tell_agents("workers", {"workers": [worker.uid for worker in self.workers]})

    def _links_complete(self, now: float) -> None:
        """Agents had time to link again, those that this broker did not know too: there are no others."""
        self._tell_workers("links.complete", {})

    def _job_ended(self, entry: Entry) -> None:
        self.waits.job_ended(entry.uid)
        self.history.job_ended()

    def _unneeded(self, connection: str) -> None:
        link = self.links.get(connection)
        if link is not None and link.mode == CLIENT:
            self.dials.idle(link, self.env.now)

    def _jobs_of(self, connection: str) -> int:
        return len(self.ledger.table.kept(connection)) + self.creations.reserved(connection)

    def drain(self) -> None:
        """The router winds down: workers say so to whoever asks whether they are ready."""
        if not self.draining:
            self.draining = True
            self._tell_workers("draining", {})

    def _shutdown(self) -> None:
        self.drain()
        self.on_shutdown()

    def _stop(self) -> None:
        self.stopping = True


def _texts(value: object) -> frozenset[str]:
    """A list of texts from a peer.

    Raises:
        ProtocolError: it is none.
    """
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ProtocolError("ids must be a list of texts")
    return frozenset(value)
