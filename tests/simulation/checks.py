"""Promises of the protocol, checked when a schedule has become quiet and again at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sized
from typing import TYPE_CHECKING, Any

from prouter.broker.jobs.tally import Tally
from prouter.broker.store.restore import Saved
from prouter.jobs import State
from tests.simulation.nodes import Dialling
from tests.simulation.world import Violation

if TYPE_CHECKING:
    from tests.simulation.schedule import Schedule

__all__ = ["over", "settled"]

_LOST = ("path_lost", "agent_gone", "worker_gone", "enough", "unknown_stream")


def settled(life: Schedule) -> None:
    """Check a quiet system: nobody waits for anything but running jobs, and only lingering streams are open.

    Raises:
        Violation: a promise was broken.
    """
    _check_linked(life)
    _check_streams(life)
    _check_calls(life)
    _check_effects(life)
    _check_jobs(life)


def over(life: Schedule) -> None:
    """Check a system in which everything has ended: nothing is left anywhere.

    Raises:
        Violation: a promise was broken.
    """
    settled(life)
    parked = life.clients.parked()
    if parked:
        raise Violation(f"{len(parked)} waits for jobs that have ended")
    for node in _nodes(life):
        if any(mux.streams for mux in node.peer.muxes.values()):
            raise Violation(f"{node.kind} {node.uid} still knows streams")
    _check_nothing_left(life)
    _check_written(life)


def _nodes(life: Schedule) -> list[Dialling]:
    return [*life.workers, *life.agents]


def _check_linked(life: Schedule) -> None:
    if life.world.broken:
        raise Violation(life.world.broken[0])
    for node in _nodes(life):
        if not node.peer.ready:
            raise Violation(f"{node.kind} {node.uid} is not linked in the end")
    if life.broker.failures:
        raise Violation(f"malformed: {life.broker.failures}")
    counts = life.broker.env.counts
    if counts["malformed"] or counts["failures"]:
        raise Violation(f"the broker counts {dict(counts)}")


def _check_streams(life: Schedule) -> None:
    open_talks = 0
    for talk in life.talks:
        if not talk.worker.runtime.alive:
            continue
        if talk.reset_code is not None and talk.reset_code not in _LOST:
            raise Violation(f"a stream was reset with {talk.reset_code}")
        if talk.reset_code is None:
            open_talks += talk.lingers
            if talk.received != talk.total or talk.finished == talk.lingers:
                raise Violation(f"a stream neither whole nor reset: {talk.received} of {talk.total}")
    for nodes in (life.workers, life.agents):
        streams = [stream for node in nodes for mux in node.peer.muxes.values() for stream in mux.streams.values()]
        if len(streams) != open_talks:
            raise Violation(f"{nodes[0].kind}s know {len(streams)} streams, {open_talks} are open")
        if not all(stream.delivered for stream in streams):
            raise Violation("what was consumed was never acknowledged")
    _check_routes(life)


def _check_routes(life: Schedule) -> None:
    """Check that nobody remembers peers that are gone, or keeps anything for their streams."""
    workers = {worker.uid.encode() for worker in life.workers}
    links = {link.connection.encode() for link in life.broker.core.links}
    for node, there in [(agent, workers) for agent in life.agents] + [(worker, links) for worker in life.workers]:
        strangers = set(node.peer.muxes) - there
        if strangers:
            raise Violation(f"{node.kind} {node.uid} remembers {len(strangers)} peers that are gone")


def _check_calls(life: Schedule) -> None:
    table = life.broker.core.ledger.table
    parked = 0
    for call in life.clients.calls:
        if not call.open:
            continue
        entry = table.get(call.job.uid) if call.job is not None else None
        if call.op != "jobs.wait" or entry is None or entry.ended or (entry.state is State.NEW and entry.confirmed):
            raise Violation(f"a call without an answer: {call.op} {call.args}")
        parked += 1
    core = life.broker.core
    if core.service.running != parked or len(core.waits) != parked:
        raise Violation(f"{core.service.running} calls run, {len(core.waits)} waits are parked, {parked} should be")
    for node in life.workers:
        own = sum(call.worker is node for call in life.clients.parked())
        _check_empty(f"calls of worker {node.uid}", node.peer.calls.pending - own)


def _check_effects(life: Schedule) -> None:
    given_up = life.broker.core.creations.keys.unwanted
    done = []
    for what, whom in life.effects:
        name, _, uid = whom.partition(" as ")
        if what != "create" or not given_up(uid):
            done.append((what, name))
    doubled = sorted(effect for effect, count in Counter(done).items() if count > 1)
    if doubled:
        raise Violation(f"done more than once: {doubled}")
    names = [record.name for agent in life.agents for record in agent.jobs.values()]
    if len(names) != len(set(names)):
        raise Violation("a job was created twice")
    stray = sorted(name for name in names if name in life.clients.refused)
    if stray:
        raise Violation(f"jobs whose creation failed: {stray}")


def _check_jobs(life: Schedule) -> None:
    core = life.broker.core
    table = core.ledger.table
    for agent in life.agents:
        for uid, record in agent.jobs.items():
            entry = table.get(uid)
            if entry is None or entry.record.state is not record.state:
                told = None if entry is None else entry.record.state
                raise Violation(f"job {uid} is {record.state}, the table says {told}")
        for uid in agent.removed:
            entry = table.get(uid)
            if entry is not None and not entry.removed:
                raise Violation(f"job {uid} was removed by its agent, the table says {entry.state}")
    alive = {uid for agent in life.agents for uid in agent.jobs}
    away = {link.connection for link in core.links if not link.up}
    strangers = [
        entry.uid for entry in table if not entry.ended and entry.uid not in alive and entry.connection not in away
    ]
    if strangers:
        raise Violation(f"the table has jobs nobody runs: {sorted(strangers)}")
    for job in life.clients.jobs:
        entry = table.get(job.uid)
        if entry is None:
            raise Violation(f"job {job.uid} is forgotten")
        if job.removed and not entry.removed:
            raise Violation(f"job {job.uid} was removed, the table says {entry.state}")


def _check_nothing_left(life: Schedule) -> None:
    core = life.broker.core
    creations = core.creations
    _check_empty("creations", creations._under_way._by_key)
    _check_empty("creations to be placed", creations._under_way.placing())
    _check_empty("reserved slots", creations.occupancy.reserved)
    _check_empty("replies that wait for a record", core.replies)
    _check_empty("waits of workers", core.waits._waits)
    _check_empty("waits for jobs", core.waits._by_job)
    _check_empty("jobs that end", core.waits._ending)
    _check_empty("calls to agents", core.forwarder.pending)
    _check_empty("frames that wait", core.inbox)
    _check_empty("challengers", core.admission._challengers)
    for link in core.links:
        _check_empty(f"calls to agent {link.info.uid}", link.caller.pending)
    for worker in core.workers:
        _check_empty(f"calls of worker {worker.uid}", worker.responder.running)
    for node in _nodes(life):
        _check_empty(f"calls of {node.kind} {node.uid}", node.peer.calls.pending)
        _check_empty(f"calls carried out by {node.kind} {node.uid}", node.peer.calls.running)
    _check_peers(life)


def _check_peers(life: Schedule) -> None:
    """Check that the broker knows each peer once, looks at each once, and has no timers but for these looks."""
    core = life.broker.core
    up = {link.info.uid for link in core.links if link.up}
    _check_same("linked agents", up, {agent.uid for agent in life.agents})
    _check_same("linked workers", {worker.uid for worker in core.workers}, {worker.uid for worker in life.workers})
    paths = len(life.workers) + len(life.agents)
    env = life.broker.env
    _check_same("routes", len(env.switch.agents) + len(env.switch.workers), paths)
    _check_same("paths", len(life.broker.agents.paths) + len(life.broker.workers.paths), paths)
    _check_same("watched paths", len(core.heartbeats), paths)
    away = sum(link.away is not None for link in core.links)
    heartbeats = core.heartbeats
    looks = Counter(path for due in (*heartbeats._later.values(), heartbeats._due) for path in due)
    _check_same("looks at watched paths", [looks[path] for path in heartbeats._watched], [1] * paths)
    _check_same("timers", len(env.timers), len(heartbeats._later) + bool(heartbeats._due) + away)


def _check_written(life: Schedule) -> None:
    """Check that a broker that starts now would know what this one knows."""
    core = life.broker.core
    ledger = core.ledger
    saved = life.broker.written()
    _check_same("jobs in memory that have ended", [entry.uid for entry in ledger.table if entry.ended], [])
    facts = {entry.uid: _facts(entry) for entry in ledger.table}
    _check_same("jobs written down", {entry.uid: _facts(entry) for entry in saved.jobs}, facts)
    _check_same("totals of jobs", _totals(ledger.table.tally), _totals(_counted(saved)))
    _check_same("keys written down", {key: (uid, job) for key, uid, job in saved.keys}, dict(core.creations.keys._jobs))
    _check_same("unwanted jobs written down", set(saved.unwanted), set(core.creations.keys._unwanted))
    peers = {uid: (peer.mode, peer.info, uid in ledger._gone) for uid, peer in ledger.peers.items()}
    found = {known.uid: (known.mode, known.info, known.gone) for known in saved.connections}
    _check_same("connections written down", found, peers)
    _check_same("events written down", saved.events, list(ledger.events._events))


def _counted(saved: Saved) -> Tally:
    """Totals over what is written down."""
    tally = Tally()
    for entry in [*saved.jobs, *saved.history.all()]:
        tally.count(entry)
    return tally


def _totals(tally: Tally) -> list[object]:
    return [+tally.states, tally.ended_bytes, tally._remembered, tally._kept, tally._live_bytes]


def _facts(entry: Any) -> tuple[Any, ...]:
    return entry.state, entry.revision, entry.lost, entry.removal, entry.ended_at, entry.last_record


def _check_empty(what: str, left: Sized | int) -> None:
    count = left if isinstance(left, int) else len(left)
    if count:
        raise Violation(f"{what} left in the end: {count}")


def _check_same(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise Violation(f"{what}: {found}, should be {wanted}")
