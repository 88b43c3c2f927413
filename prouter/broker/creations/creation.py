"""Creation of jobs, once for each idempotency key: choose or dial an agent, store key and uid, then ask the agent.

`prouter.broker.creations.state` has the states. The broker stores key and uid before it asks the agent. So a repeated
request gives the same job, also after a restart of the broker.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from prouter.broker.base.env import Done, Env
from prouter.broker.creations.claims import Claim, Claims, shared_key
from prouter.broker.creations.keys import Keys, check_digest
from prouter.broker.creations.promises import Promises
from prouter.broker.creations.reservations import Reservations
from prouter.broker.creations.state import Creation, CreationState
from prouter.broker.creations.under_way import UnderWay
from prouter.broker.creations.unheard import Unheard
from prouter.broker.jobs.create_args import create_args
from prouter.broker.jobs.ledger import Ledger
from prouter.broker.jobs.replies import Replies
from prouter.broker.links.dials import Dials
from prouter.broker.links.forward import Forwarder
from prouter.broker.links.link import Link
from prouter.broker.links.links import Links
from prouter.broker.placing.occupancy import Occupancy
from prouter.broker.placing.placement import resources_at, resources_of
from prouter.broker.queue.queued_jobs import QueuedJobs
from prouter.broker.queue.requests import is_queue_place
from prouter.errors import AgentUnavailable, LimitReached, NotFound, Overloaded, PRouterError
from prouter.jobs import JobRecord

__all__ = ["Creations"]

log = logging.getLogger("prouter.broker")

_LATE = 15.0
"""Seconds after which an agent that is linked to another router should have linked to this one as well."""
_ASK_AGAIN = 0.05
"""Seconds after which a creation that waits for what agents list or remove looks again."""


class Creations:
    """All creations that are under way.

    Attributes:
        keys: what earlier requests have given.
    """

    def __init__(
        self, env: Env, links: Links, dials: Dials, forwarder: Forwarder, ledger: Ledger, replies: Replies
    ) -> None:
        self.keys = Keys(env)
        self.claims = Claims(env, links, forwarder)
        self._under_way = UnderWay(env, ledger.table)
        ledger.table.is_ours, ledger.table.owner_of = self.keys.gave, self._under_way.owner_of
        self._env = env
        self._links = links
        self._dials = dials
        self._forwarder = forwarder
        self._ledger = ledger
        self._replies = replies
        self.occupancy = Occupancy(ledger.table)
        self.queued = QueuedJobs(env, links, forwarder, ledger, replies, self.occupancy)
        self._reservations = Reservations(links, ledger.table, self.occupancy, self.queued, self._under_way)
        self._unheard = Unheard(env, links, ledger, self.keys)
        self._promises = Promises(self.keys, ledger.table, self._under_way)

    @property
    def pending(self) -> int:
        """How many creations are under way."""
        return len(self._under_way)

    def reserved(self, connection: str) -> int:
        """How many jobs are being created on a connection."""
        return self.occupancy.reserved[connection]

    def create(self, args: dict[str, Any], done: Done, now: float) -> None:
        """Carry out ``jobs.create``; `done` gets ``{"job": info}``.

        Raises:
            PRouterError: the request is refused at once.
        """
        creation = Creation.of(args, done)
        key, digest = creation.key, creation.digest
        running = self._under_way.with_key(key)
        if running is not None:
            check_digest(running.digest, digest)
            running.callers.append(done)
            return
        if len(self._under_way) >= self._env.settings.bounds.link_calls:
            raise Overloaded("too many jobs are being created", retry_after=1)
        known = self._promises.given(key, digest)
        if known is not None and self._ledger.table.look(known[1]) is not None:
            self._repeat(creation, *known, now)
        elif self._unheard.matters(keyed=bool(digest), now=now):
            self._env.timers.at(now + _ASK_AGAIN, partial(self._create_later, args, done))
        elif known is not None:
            self._promises.check(creation, known[1])
            self._repeat(creation, *known, now)
        else:
            self._under_way.check_owner(creation.owner)
            self._start(creation, now)

    def _create_later(self, args: dict[str, Any], done: Done, now: float) -> None:
        try:
            self.create(args, done, now)
        except PRouterError as error:
            done({}, error, now)

    def _start(self, creation: Creation, now: float) -> None:
        selector = creation.selector
        if selector.get("type") == "address":
            self._dial(creation, str(selector.get("address", "")), str(selector.get("token", "")), now)
        else:
            self._place(creation, now)

    def given(self, record: JobRecord) -> None:
        """Note that an agent gave a warm job instead, as each record of that job says. Idempotent."""
        uid = record.instead_of or ""
        self.keys.replaced(uid, record.connection, record.uid)
        creation = self._under_way.with_uid(uid)
        if creation is not None and creation.link is not None and creation.link.connection == record.connection:
            self._under_way.name(creation, record.uid)
            self._ledger.table.taken.give_back(uid)

    def restored(self, now: float) -> None:
        """Note that keys, jobs and links of an earlier broker are restored; agents have not listed their jobs yet."""
        self._unheard.restored(now)

    def link_up(self, link: Link, now: float) -> None:
        """Place the creations that wait for an agent: this one is linked (again)."""
        self.claims.link_up(link)
        for creation in self._under_way.placing():
            try:
                self._place(creation, now)
            except PRouterError as error:
                self._fail(creation, error, now)

    def _change(self, creation: Creation, state: CreationState) -> None:
        """The one place where a creation changes its state."""
        creation.change(state)
        ended = self._under_way.changed(creation)
        if state is not CreationState.PLACING and creation.timer is not None:
            creation.timer.cancel()
            creation.timer = None
        if ended or state is CreationState.CREATED:  # From then on the table has the job, and what it takes.
            self._reservations.free(creation)

    # -- to an agent ----------------------------------------------------------------------------------------------

    def _dial(self, creation: Creation, address: str, token: str, now: float) -> None:
        self._under_way.begin(creation)
        self._change(creation, CreationState.DIALLING)
        self._dials.obtain(address, token, partial(self._dialled, creation), now)

    def _dialled(self, creation: Creation, link: Link | None, error: PRouterError | None, now: float) -> None:
        if link is None:
            self._fail(creation, error or AgentUnavailable("the agent is away", retry_after=2), now)
            return
        try:
            self._reservations.check(creation, link)
        except PRouterError as problem:
            self._fail(creation, problem, now)
        else:
            self._reserve(creation, link, now)

    def _place(self, creation: Creation, now: float) -> None:
        """Choose an agent, or wait for one that is away.

        Raises:
            PRouterError: there is none to wait for.
        """
        link = self._reservations.choose(creation)
        self._under_way.begin(creation)
        if link is None and creation.timeout is not None:
            self._to_queue(creation, "", now)
        elif link is not None:
            self._reserve(creation, link, now)
        elif creation.state is not CreationState.PLACING:
            self._change(creation, CreationState.PLACING)
            until = now + self._env.settings.hold
            creation.timer = self._env.timers.at(until, partial(self._not_placed, creation))

    def _not_placed(self, creation: Creation, now: float) -> None:
        self._fail(creation, AgentUnavailable("the agent is away", retry_after=2), now)

    def _reserve(self, creation: Creation, link: Link, now: float, instead: str = "") -> None:
        self._change(creation, CreationState.RESERVED)
        self._reservations.take(creation, link, self._env.new_uid())
        link.placed += 1
        link.warm.take(creation.template)
        self._settle_key(creation, instead, now)

    def _to_queue(self, creation: Creation, instead: str, now: float) -> None:
        self._change(creation, CreationState.RESERVED)
        self._under_way.name(creation, self._env.new_uid())
        self._settle_key(creation, instead, now)

    def _settle_key(self, creation: Creation, instead: str, now: float) -> None:
        """Go on; first claim a key that a client sent, so that no other router creates another job for it."""
        if creation.digest:
            self._claim(creation, instead, now)
        else:
            self._remember(creation)

    def _remember(self, creation: Creation) -> None:
        if creation.link is None:
            self._queue(creation)
        else:
            stored = partial(self._stored, creation)
            self.keys.remember(creation.key, creation.link.connection, creation.uid, creation.digest, stored=stored)

    def _queue(self, creation: Creation) -> None:
        """Put the job into the queue, and answer once that is stored: queue and key first, the job's record last."""
        amounts = dict(resources_of(creation.selector))
        record = self.queued.record(creation.uid, creation.name, **creation.origin, resources=amounts)
        self.queued.add(record, creation.wishes, creation.timeout or 0.0, creation.start)
        self.keys.remember(creation.key, record.connection, record.uid, creation.digest, stored=_nothing)
        self._ledger.put(record)
        self._change(creation, CreationState.CREATED)
        self._ledger.when_written(partial(self._written, creation))

    # -- with other routers ---------------------------------------------------------------------------------------

    def _claim(self, creation: Creation, instead: str, now: float) -> None:
        """Claim the client's key for the job, because another router may have got the same request."""
        if creation.state is not CreationState.RESERVED:
            return
        place = creation.link.connection if creation.link is not None else self.queued.place
        claim = Claim(creation.uid, place)
        self.claims.claim(creation.key, creation.digest, claim, instead, partial(self._claimed, creation), now)

    def _claimed(self, creation: Creation, claim: Claim | None, error: PRouterError | None, now: float) -> None:
        if creation.state is not CreationState.RESERVED:
            return
        if claim is None:
            self._fail(creation, error or AgentUnavailable("the key is not claimed", retry_after=1), now)
        elif claim.job == creation.uid:
            self._remember(creation)
        else:
            self._adopt(creation, claim, now)

    def _adopt(self, creation: Creation, claim: Claim, now: float) -> None:
        """Go on with the job for which another router, or an earlier request, has claimed the key."""
        entry, link = self._ledger.table.get(claim.job), self._links.get(claim.connection)
        if entry is not None and entry.key == shared_key(creation.key):
            self._reservations.free(creation)
            self._repeat(creation, entry.connection, entry.uid, now)
        elif is_queue_place(claim.connection) and claim.connection != self.queued.place:
            text = "another router has queued this job; ask that one, or try again once an agent has it"
            self._fail(creation, AgentUnavailable(text, code="agent_elsewhere", retry_after=5), now)
        elif entry is not None or self.keys.unwanted(claim.job) or (link is None and claim.age > _LATE):
            self._claim_again(creation, claim.job, now)
        elif link is None:
            text = "another router creates this job on an agent that is not linked to this router; try again"
            self._fail(creation, AgentUnavailable(text, code="agent_elsewhere", retry_after=1), now)
        else:
            self._reservations.free(creation)
            self._reservations.take(creation, link, claim.job)
            self._remember(creation)

    def _claim_again(self, creation: Creation, other: str, now: float) -> None:
        """Claim the key in place of a job that nobody can get any more. Its agent may still have to remove it."""
        if creation.claim_until is None:
            creation.claim_until = now + self._env.settings.hold
        if now < creation.claim_until:
            self._env.timers.at(now + _ASK_AGAIN, partial(self._claim, creation, other))
        else:
            text = f"an agent still has job '{other}', whose creation failed, and the key with it; try again"
            self._fail(creation, AgentUnavailable(text, retry_after=5), now)

    # -- to the job -----------------------------------------------------------------------------------------------

    def _stored(self, creation: Creation, now: float) -> None:
        if creation.state is CreationState.RESERVED:
            self._call(creation, now)

    def _repeat(self, creation: Creation, connection: str, uid: str, now: float) -> None:
        """Give the first request's answer again, whatever has become of the job since."""
        creation.uid = uid
        entry = self._ledger.table.get(uid)
        if entry is not None:
            self._change(creation, CreationState.CREATED)
            answer = {"job": self._ledger.info(entry, entry.as_created if entry.client is None else None)}
            self._ledger.when_written(partial(self._answer, creation, answer))
            return
        link = self._links.get(connection)
        if link is None and connection == self.queued.place:  # An earlier broker died before it had queued the job.
            self.keys.forget(creation.key)
            creation.uid = ""
            self._start(creation, now)
            return
        if link is None:
            error = AgentUnavailable("the agent the job was created on is gone", job=uid, code="agent_lost")
            self._fail(creation, error, now)
            return
        self._under_way.begin(creation)
        self._reservations.take(creation, link, uid)
        self._call(creation, now)

    def _call(self, creation: Creation, now: float) -> None:
        link = creation.link
        if link is None or self._links.get(link.connection) is not link:
            self._fail(creation, AgentUnavailable("the agent is gone", code="agent_lost"), now)
            return
        self._change(creation, CreationState.CALLED)
        resources = resources_at(link, creation.selector, creation.template)
        optional = {**creation.origin, "template": creation.template}
        args = create_args(creation.uid, creation.name, link, self._env.settings.auth, resources, optional)
        self._forwarder.call(link, "job.create", args, partial(self._replied, creation, link), now)

    def _replied(
        self, creation: Creation, link: Link, value: dict[str, Any], error: PRouterError | None, now: float
    ) -> None:
        if isinstance(error, LimitReached) and self._elsewhere(creation, link, now):
            return
        if error is not None:
            self._fail(creation, error, now)
        else:
            uid = str(value.get("uid", creation.uid))  # A job that was ready has another one.
            self._replies.settle(link, uid, value, partial(self._created, creation, uid), now)

    def _elsewhere(self, creation: Creation, link: Link, now: float) -> bool:
        """Choose another agent after one had no space, because jobs of other routers took it, or queue the job.

        Returns:
            whether that was possible.
        """
        link.full = True
        if creation.selector.get("type") == "address":
            return False
        other = self._reservations.other(creation, link)
        if other is None and not (creation.timeout is not None and self.queued.has_space(creation.start)):
            return False
        refused = creation.uid
        self.keys.withdraw(creation.key, refused)
        self._reservations.free(creation)
        if other is not None:
            self._reserve(creation, other, now, instead=refused)
        else:
            self._to_queue(creation, refused, now)
        return True

    def _created(
        self, creation: Creation, uid: str, record: JobRecord | None, error: PRouterError | None, now: float
    ) -> None:
        if error is not None:
            self._fail(creation, error, now)
            return
        entry = self._ledger.table.get(uid)
        if entry is not None and entry.record.instead_of == creation.uid:
            self.given(entry.record)  # It may have been given to another router first, for the same key.
        if creation.template is not None:
            self._env.counts["jobs_ready" if entry is not None and entry.record.instead_of else "jobs_not_ready"] += 1
        self._change(creation, CreationState.CREATED)
        self._ledger.when_written(partial(self._written, creation))

    def _written(self, creation: Creation, now: float) -> None:
        entry = self._ledger.table.get(creation.uid)
        if entry is not None:
            self._answer(creation, {"job": self._ledger.info(entry)}, now)
        else:
            self._fail(creation, NotFound(f"job '{creation.uid}' is not found", job=creation.uid), now)

    # -- the end --------------------------------------------------------------------------------------------------

    def _answer(self, creation: Creation, value: dict[str, Any], now: float) -> None:
        self._change(creation, CreationState.ANSWERED)
        creation.reply(value, None, now)

    def _fail(self, creation: Creation, error: PRouterError, now: float) -> None:
        """Answer with the error; a job that its agent may have is given up, and that is stored first."""
        self._change(creation, CreationState.FAILED)
        if not creation.uid:
            creation.reply({}, error, now)
            return
        log.warning("event=create_failed job=%s error=%r", creation.uid, error.logged)
        self.keys.give_up(creation.key, creation.uid)
        self._ledger.when_written(partial(creation.reply, {}, error))


def _nothing(_now: float) -> None:
    """The client waits for what is stored last."""
