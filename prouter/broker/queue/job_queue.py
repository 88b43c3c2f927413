"""The queue's decisions: which waiting job goes to which agent, and what is stored and sent in which order.

An agent that has space is *offered* to the queue. Of the jobs that fit there, the first in the queue's order
(`FairOrder`) is assigned to it. A job that fits nowhere is passed over; but once jobs behind it have been placed for
`reserve_after` seconds, one agent that is large enough is *reserved* for it: that agent takes no other job until this
one fits. There is one reservation at a time, so a few large jobs cannot stop all agents.

The rules that let no job start twice, and forget none, whenever a process is killed:

1. A job is in the store before its client hears that it is queued.
2. An assignment is in the store before the agent hears of it. After a restart the same agent is asked again, with the
   same uid, which it takes for the same job.
3. A job goes back to the queue only if its agent refused it, or is gone without having reported that it has the job.
   The agent cannot have started it, because the start is sent only after the agent's record is in the store.
4. A start has one id for ever, and the agent carries it out once.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from functools import partial
from math import inf
from typing import Protocol

from prouter.broker.queue.item import Item, QueueState, Refusal, Shape
from prouter.broker.queue.order import FairOrder, Key

__all__ = ["Actions", "JobQueue"]

Fits = Callable[[Shape], bool]
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
"""Seconds after which an agent that could not create a job is asked again for it; doubled with each of its answers."""
_LOOKED_AT = 32
"""Most shapes, from the front of the queue, of which the queue notes that a job behind them was placed first."""

_WAITING, _ASSIGNED, _PLACED, _STARTING, _OVER = QueueState


class Actions(Protocol):
    """Effects of the queue's decisions, which the caller carries out. No method blocks."""

    def save(self, item: Item, then: Callable[[], None] | None = None) -> None:
        """Store a job as it is now; call `then` once that is committed."""

    def erase(self, item: Item) -> None:
        """Delete a job from the store's queue."""

    def claim(self, item: Item) -> None:
        """Take the job's slot and resources on the agent that it is assigned to."""

    def release(self, item: Item) -> None:
        """Give the job's slot and resources back."""

    def create(self, item: Item) -> None:
        """Ask the agent to create the job."""

    def start_job(self, item: Item) -> None:
        """Ask the agent to start the job."""

    def host(self, item: Item, now: float) -> str | None:
        """Return the connection of the emptiest agent that is large enough for the job; None if there is none."""


class JobQueue:
    """All jobs in the queue. Times are seconds since the epoch.

    Args:
        reserve_after: seconds for which a job is passed over before an agent is reserved for it.

    Attributes:
        reserved: the job for which an agent is kept free, and the agent's connection; None without one.
        decisions: how many offers were looked at.
    """

    def __init__(self, actions: Actions, *, reserve_after: float) -> None:
        self._actions = actions
        self._reserve_after = reserve_after
        self._items: dict[str, Item] = {}
        self._assigned: dict[str, dict[str, Item]] = {}
        """By connection and uid, jobs that their agent has not reported yet."""
        self._order = FairOrder()
        self._deadlines: list[tuple[float, int, Item]] = []
        self._due: set[Item] = set()
        """The jobs in `_deadlines`."""
        self._numbers = 0
        self.reserved: tuple[Item, str] | None = None
        self.decisions = 0

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(list(self._items.values()))

    def get(self, uid: str) -> Item | None:
        """The job with this uid; None if the queue has nothing to do with it any more."""
        return self._items.get(uid)

    @property
    def waiting(self) -> int:
        """How many jobs no agent has been chosen for."""
        return len(self._order)

    def first_of(self, shape: Shape) -> Item | None:
        """The first waiting job of a shape; None if none waits."""
        return next(self._order.of_shape(shape), None)

    def position(self, uid: str) -> int | None:
        """A job's place in the queue, from 1 on; None if it does not wait."""
        item = self._items.get(uid)
        return self._order.position(item) if item is not None and item.state is _WAITING else None

    def longest_wait(self, now: float) -> float:
        """Seconds for which the first job in the queue has waited; 0 without one."""
        first = self._order.first
        return max(0.0, now - first.since) if first is not None else 0.0

    # -- into the queue and out of it -------------------------------------------------------------------------------

    def add(self, item: Item, stored: Callable[[], None]) -> None:
        """Queue a job; `stored` is called once it is in the store."""
        self._numbers += 1
        item.number = self._numbers
        self._items[item.uid] = item
        self._order.append(item)
        self._note_deadline(item)
        self._actions.save(item, stored)

    def restore(self, items: list[tuple[Item, bool]]) -> None:
        """Take over jobs that an earlier broker stored.

        Args:
            items: each with whether its agent's record is in the store.
        """
        for item, _placed in items:
            self._numbers = max(self._numbers, item.number)
            self._items[item.uid] = item
            if item.connection:
                item.change(_ASSIGNED)
                self._assigned.setdefault(item.connection, {})[item.uid] = item
                self._actions.claim(item)
            else:
                self._order.insert(item)
            self._note_deadline(item)
        self._order.begin(item for item, _placed in items if item.connection)
        for item, placed in items:
            if placed:
                self.created(item)
            elif item.connection:
                self._actions.create(item)

    def end(self, item: Item) -> None:
        """Forget a job: it was removed, or its time was up, or its agent has it."""
        if self._items.pop(item.uid, None) is None:
            return
        if item.state is _WAITING:
            self._order.remove(item)
        elif item.state is _ASSIGNED:
            self._unassign(item)
        if self.reserved is not None and self.reserved[0] is item:
            self.reserved = None
        item.change(_OVER)
        self._actions.erase(item)

    def keep_start(self, item: Item, start: bytes, start_id: str, stored: Callable[[], None]) -> None:
        """Note the request that starts a job once an agent has it."""
        item.start, item.start_id = start, start_id
        self._actions.save(item, stored)

    def expired(self, now: float, most: int) -> list[Item]:
        """Jobs whose time is up while they wait."""
        found: list[Item] = []
        while self._deadlines and self._deadlines[0][0] <= now and len(found) < most:
            item = self._pop_deadline()
            if item.state is _WAITING:
                found.append(item)
        return found

    @property
    def deadline(self) -> float | None:
        """When the next job's time is up; None without one."""
        while self._deadlines and self._deadlines[0][2].state is _OVER:
            self._pop_deadline()
        return self._deadlines[0][0] if self._deadlines else None

    # -- to an agent ------------------------------------------------------------------------------------------------

    def offer(
        self, connection: str, fits: Fits, now: float, *, after: Key | None, most: int
    ) -> tuple[bool, Key | None]:
        """Give an agent that may have space the first job that fits it.

        Args:
            fits: whether a job of this shape may go to the agent, and fits there now.
            after: what the last call returned for this agent; None at first.
            most: shapes to look at.

        Returns:
            Whether a job was assigned, and where to go on; None if nothing else fits.
        """
        self.decisions += 1
        if self.reserved is not None and self.reserved[1] == connection:
            item = self.reserved[0]
            if fits(item.shape):
                self.assign(item, connection, now)
                return True, item.key
            return False, None
        heads = self._order.heads(after, most)
        for head in heads:
            if not fits(head.shape):
                continue
            for item in self._order.of_shape(head.shape):
                if not item.avoids(connection, now):
                    self.assign(item, connection, now)
                    return True, head.key
        return False, heads[-1].key if len(heads) == most else None

    def assign(self, item: Item, connection: str, now: float) -> None:
        """Choose a waiting job's agent: store that, then ask the agent to create the job."""
        if self.reserved is not None and self.reserved[0] is item:
            self.reserved = None
        self._pass_over(item, now)
        self._order.serve(item)
        item.change(_ASSIGNED)
        item.connection, item.passed_at = connection, None
        self._assigned.setdefault(connection, {})[item.uid] = item
        self._actions.claim(item)
        self._actions.save(item, partial(self._stored, item, connection))

    def _stored(self, item: Item, connection: str) -> None:
        if item.state is _ASSIGNED and item.connection == connection:
            self._actions.create(item)

    def created(self, item: Item) -> None:
        """Note that the agent's record of a job is in the store. A start that came meanwhile is sent now."""
        if item.state is not _ASSIGNED:
            return
        self._drop(item)
        item.change(_PLACED)
        if item.start is None:
            self.end(item)
            return
        item.change(_STARTING)
        self._actions.start_job(item)

    def refuse(self, item: Item, text: str, now: float, *, passes: bool) -> float:
        """Note that a job's agent could not create it although it has space, and put the job back.

        Args:
            text: what the agent said.
            passes: whether the reason may pass, so that the agent may answer differently later.

        Returns:
            seconds until it is to be asked again; infinite if it is not.
        """
        before = item.refusals.get(item.connection)
        pause = inf if not passes else min(_LONGEST_PAUSE, before.pause * 2) if before is not None else _FIRST_PAUSE
        item.refusals[item.connection] = Refusal(text, now + pause, pause)
        self.put_back(item)
        return pause

    def put_back(self, item: Item) -> None:
        """Put a job back at its place in the queue: its agent has not created it."""
        if item.state is not _ASSIGNED:
            return
        self._unassign(item)
        item.change(_WAITING)
        self._order.insert(item)
        self._note_deadline(item)
        self._actions.save(item)

    def agent_gone(self, connection: str, told: Callable[[Item], bool]) -> bool:
        """Put back the jobs that were assigned to an agent which is gone; return whether there were any.

        Args:
            told: whether the agent has reported that it has the job. Such a job is lost, like others of that agent.
        """
        back = False
        for item in list(self._assigned.get(connection, {}).values()):
            if told(item):
                self.end(item)
            else:
                self.put_back(item)
                back = True
        self.withdraw(connection)
        return back

    def withdraw(self, connection: str) -> None:
        """End an agent's reservation: it is gone, or takes no jobs."""
        if self.reserved is not None and self.reserved[1] == connection:
            self.reserved = None

    # -- inside -----------------------------------------------------------------------------------------------------

    def _pass_over(self, item: Item, now: float) -> None:
        """Note which jobs an assignment passes over, and reserve an agent for the first that waited long enough."""
        for head in self._order.heads(most=_LOOKED_AT):
            if head.key >= item.key:
                return
            if head.passed_at is None:
                head.passed_at = now
            elif self.reserved is None and now - head.passed_at >= self._reserve_after:
                host = self._actions.host(head, now)
                if host is not None:
                    self.reserved = (head, host)

    def _note_deadline(self, item: Item) -> None:
        if item not in self._due:
            self._due.add(item)
            heapq.heappush(self._deadlines, (item.until, item.number, item))

    def _pop_deadline(self) -> Item:
        item = heapq.heappop(self._deadlines)[2]
        self._due.discard(item)
        return item

    def _unassign(self, item: Item) -> None:
        self._drop(item)
        self._actions.release(item)
        item.connection = ""

    def _drop(self, item: Item) -> None:
        items = self._assigned[item.connection]
        del items[item.uid]
        if not items:
            del self._assigned[item.connection]
