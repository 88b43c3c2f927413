"""What follows when a link to an agent comes up, is lost for a while, or is gone."""

from __future__ import annotations

from functools import partial
from itertools import islice

from prouter.broker.base.env import Env
from prouter.broker.creations.creation import Creations
from prouter.broker.jobs.ledger import Ledger
from prouter.broker.jobs.replies import Replies
from prouter.broker.links.admission import Admission
from prouter.broker.links.dials import Dials
from prouter.broker.links.forward import Forwarder
from prouter.broker.links.hello import CLIENT
from prouter.broker.links.link import Link
from prouter.broker.links.links import Links
from prouter.broker.links.workers import Workers
from prouter.broker.views.broadcast import Broadcast

__all__ = ["LinkChanges"]


class LinkChanges:
    """The `LinkListener` of the broker: tells workers and agents, and moves on what waited for the agent.

    Args:
        started: when this broker started (monotonic seconds).
    """

    def __init__(
        self,
        env: Env,
        links: Links,
        workers: Workers,
        broadcast: Broadcast,
        ledger: Ledger,
        forwarder: Forwarder,
        dials: Dials,
        admission: Admission,
        creations: Creations,
        replies: Replies,
        *,
        started: float,
    ) -> None:
        self._env = env
        self._links = links
        self._workers = workers
        self._broadcast = broadcast
        self._ledger = ledger
        self._forwarder = forwarder
        self._dials = dials
        self._admission = admission
        self._creations = creations
        self._replies = replies
        self._started = started

    def link_up(self, link: Link, now: float) -> None:
        """Tell the agent which workers there are, tell the workers of the agent, and send what waited for it."""
        self._ledger.meet(link, self._dials.address_of(link))
        if now - self._started < self._env.settings.workers_return:
            # The list would end the streams of workers that have not come back to this broker yet.
            for worker in self._workers:
                self._forwarder.tell(link, "worker.up", {"worker": worker.uid})
        else:
            self._forwarder.tell(link, "workers", {"workers": [worker.uid for worker in self._workers]})
        if self._env.settings.sandbox_bytes_per_owner:
            self._forwarder.tell(link, "sandboxes", {"measure": True})
        self._broadcast.workers("link.up", link.describe())
        self._ledger.agent_changed(link, "up")
        self._forwarder.link_up(link)
        self._creations.link_up(link, now)
        self._creations.queued.offer(link.connection)

    def link_leaves(self, link: Link) -> None:
        """Have workers hold new requests for an agent that is about to stop and to come back."""
        leaving = {"reason": "the agent is being restarted", "gone": False, "leaving": True}
        self._broadcast.workers("link.down", {"connection": link.connection, **leaving})

    def link_down(self, link: Link, reason: str, now: float) -> None:
        """Let streams and calls wait for the agent."""
        self._broadcast.workers("link.down", {"connection": link.connection, "reason": reason, "gone": False})
        self._ledger.agent_changed(link, "down")
        self._forwarder.link_down(link, now)
        if link.mode == CLIENT:
            self._dials.link_down(link, now)
        self._admission.rival_lost(link, now)

    def link_gone(self, link: Link, reason: str, now: float) -> None:
        """End the jobs and streams of an agent that does not come back."""
        self._broadcast.workers("link.down", {"connection": link.connection, "reason": reason, "gone": True})
        self._lose_jobs(link, reason, now)
        self._ledger.agent_changed(link, "gone")
        self._forwarder.link_gone(link, reason, now)
        self._replies.link_gone(link, reason, now)
        self._creations.queued.link_gone(link)
        self._dials.link_gone(link, now)
        self._admission.rival_lost(link, now)

    def _lose_jobs(self, link: Link, reason: str, now: float) -> None:
        """Mark the agent's jobs as lost, some now and the others in later iterations of the event loop.

        It stops when the agent is linked again.
        """
        if self._links.get(link.connection) is not None:
            return
        some = set(islice(self._ledger.table.live(link.connection), self._env.settings.bounds.iteration))
        if some:
            self._ledger.lose(link.connection, some, reason)
        if self._ledger.table.live(link.connection):
            self._env.timers.at(now, partial(self._lose_jobs, link, reason))
        else:
            self._ledger.part(link)
