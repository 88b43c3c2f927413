"""The queue under kills of broker and agents at any point, without I/O.

A broker is a `JobQueue` and what it has in memory. A store commits what it was given in order, late, and loses the rest
when the broker is killed. Agents create and start jobs, each uid once; messages between them and the broker are lost
when either is killed. Whatever happens: no job is started twice, no agent gets more than it has, and no job of which a
client was told is forgotten.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from prouter.broker.queue.item import Item, QueueState, Shape
from prouter.broker.queue.job_queue import JobQueue

SPACE = 4


class Agent:
    """A machine that runs jobs: by uid, what each takes of its space."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.jobs: dict[str, int] = {}
        self.started: set[str] = set()
        self.linked = True

    def create(self, uid: str, need: int) -> bool:
        if uid not in self.jobs and sum(self.jobs.values()) + need > SPACE:
            return False
        self.jobs[uid] = need
        return True


Row = tuple[Item, bool]


class Store:
    """Rows of the queue and of the job table, committed in order."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.placed: dict[str, str] = {}
        self.pending: list[tuple[Callable[[], None], Callable[[], None] | None]] = []

    def submit(self, write: Callable[[], object], then: Callable[[], None] | None = None) -> None:
        self.pending.append((write, then))  # type: ignore[arg-type]

    def commit(self) -> None:
        write, then = self.pending.pop(0)
        write()
        if then is not None:
            then()


def copy(item: Item, connection: str) -> Item:
    """An item as the store gives it to the next broker."""
    return replace(item, connection=connection, state=QueueState.WAITING, refusals={}, passed_at=None)


class Broker:
    """What one broker process has in memory, and its connections to agents."""

    def __init__(self, world: Kills) -> None:
        self.world = world
        self.claims: dict[str, dict[str, int]] = {}
        self.to_agents: list[tuple[str, str, Item]] = []
        self.to_broker: list[tuple[str, str, str, bool]] = []
        self.adopted: dict[str, str] = dict(world.store.placed)
        self.queue = JobQueue(self, reserve_after=3.0)
        for uid, agent in self.adopted.items():
            self.claims.setdefault(agent, {})[uid] = world.needs[uid]
        rows = [(copy(item, item.connection), item.uid in self.adopted) for item, _ in world.store.rows.values()]
        self.queue.restore(rows)

    # Actions

    def save(self, item: Item, then: Callable[[], None] | None = None) -> None:
        row = (copy(item, item.connection), False)
        self.world.store.submit(lambda: self.world.store.rows.__setitem__(item.uid, row), then)

    def erase(self, item: Item) -> None:
        self.world.store.submit(lambda: self.world.store.rows.pop(item.uid, None))

    def claim(self, item: Item) -> None:
        self.claims.setdefault(item.connection, {})[item.uid] = self.world.needs[item.uid]

    def release(self, item: Item) -> None:
        del self.claims[item.connection][item.uid]

    def create(self, item: Item) -> None:
        self.to_agents.append(("create", item.connection, item))

    def start_job(self, item: Item) -> None:
        self.to_agents.append(("start", self.adopted[item.uid], item))

    def host(self, item: Item, now: float) -> str | None:
        large = item.shape.selector["need"] <= SPACE
        agents = self.world.agents.values()
        found = [one.name for one in agents if one.linked and large and not item.avoids(one.name, now)]
        return found[0] if found else None

    # The rest of a broker

    def fits(self, connection: str, shape: Shape) -> bool:
        return sum(self.claims.get(connection, {}).values()) + int(shape.selector["need"]) <= SPACE

    def place(self) -> None:
        """Offer every agent to the queue until nothing fits."""
        for agent in self.world.agents.values():
            after, more = None, agent.linked
            while more:
                fits = partial(self.fits, agent.name)
                placed, after = self.queue.offer(agent.name, fits, self.world.now, after=after, most=2)
                more = placed or after is not None

    def hear(self, kind: str, agent: str, uid: str, good: bool) -> None:
        item = self.queue.get(uid)
        if kind == "started":
            if item is not None:
                self.queue.end(item)
        elif item is None or item.connection != agent:
            if self.adopted.get(uid) != agent and uid in self.world.agents[agent].jobs:
                del self.world.agents[agent].jobs[uid]  # the broker has the agent remove it
        elif good:
            self.adopted[uid] = agent
            self.world.store.submit(
                lambda: self.world.store.placed.__setitem__(uid, agent), lambda: self.queue.created(item)
            )
        else:
            self.queue.refuse(item, "no", self.world.now, passes=True)

    def gone(self, agent: str) -> None:
        self.queue.agent_gone(agent, lambda item: self.adopted.get(item.uid) == agent)
        for uid in [uid for uid, where in self.adopted.items() if where == agent]:
            self.world.lost.add(uid)
            self.claims.get(agent, {}).pop(uid, None)
            item = self.queue.get(uid)
            if item is not None:
                self.queue.end(item)
        self.to_agents = [message for message in self.to_agents if message[1] != agent]
        self.to_broker = [message for message in self.to_broker if message[1] != agent]


class Kills(RuleBasedStateMachine):
    """Clients, one broker after another, two agents, and a hand that kills them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.count = 0
        self.store = Store()
        self.needs: dict[str, int] = {}
        self.told: set[str] = set()
        self.ended: set[str] = set()
        self.lost: set[str] = set()
        self.starts: Counter[str] = Counter()
        self.agents = {name: Agent(name) for name in ("a0", "b0")}
        self.broker = Broker(self)

    @rule(owner=st.sampled_from("xyz"), need=st.integers(1, SPACE), start=st.booleans(), patience=st.integers(2, 30))
    def queue_a_job(self, owner: str, need: int, start: bool, patience: int) -> None:
        self.count += 1
        uid = f"j{self.count}"
        self.needs[uid] = need
        shape = Shape(json.dumps(need), {"need": need})
        item = Item(uid, "", owner, shape, until=self.now + patience)
        if start:
            item.start, item.start_id = b"start", "once"
        self.broker.queue.add(item, lambda: self.told.add(uid))
        self.broker.place()

    @rule(seconds=st.integers(1, 5))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds
        for item in self.broker.queue.expired(self.now, 99):
            self.finish(item)
        self.broker.place()

    @rule(which=st.integers(0, 9))
    def remove_a_waiting_job(self, which: int) -> None:
        waiting = [item for item in self.broker.queue if item.state is QueueState.WAITING]
        if waiting:
            self.finish(waiting[which % len(waiting)])

    def finish(self, item: Item) -> None:
        self.store.submit(lambda: self.ended.add(item.uid))
        self.broker.queue.end(item)

    @precondition(lambda self: self.store.pending)
    @rule(most=st.integers(1, 5))
    def commit(self, most: int) -> None:
        for _ in range(min(most, len(self.store.pending))):
            self.store.commit()

    @precondition(lambda self: self.broker.to_agents)
    @rule(most=st.integers(1, 5))
    def deliver_to_agents(self, most: int) -> None:
        for _ in range(min(most, len(self.broker.to_agents))):
            self.deliver_to_agent()

    def deliver_to_agent(self) -> None:
        kind, name, item = self.broker.to_agents.pop(0)
        agent = self.agents.get(name)
        if agent is None or not agent.linked:
            return
        if kind == "create":
            good = agent.create(item.uid, self.needs[item.uid])
            self.broker.to_broker.append(("created", name, item.uid, good))
        else:
            if item.uid in agent.jobs and item.uid not in agent.started:
                self.starts[item.uid] += 1
                agent.started.add(item.uid)
            self.broker.to_broker.append(("started", name, item.uid, item.uid in agent.jobs))

    @precondition(lambda self: self.broker.to_broker)
    @rule(most=st.integers(1, 5))
    def deliver_replies(self, most: int) -> None:
        for _ in range(min(most, len(self.broker.to_broker))):
            self.deliver_to_broker()

    @rule(rounds=st.integers(1, 3))
    def all_goes_well_for_a_while(self, rounds: int) -> None:
        for _ in range(rounds):
            self.deliver_to_agents_and_back()

    def deliver_to_agents_and_back(self) -> None:
        for queue, step in (
            (lambda: self.store.pending, self.store.commit),
            (lambda: self.broker.to_agents, self.deliver_to_agent),
            (lambda: self.broker.to_broker, self.deliver_to_broker),
        ):
            for _ in range(len(queue())):
                step()

    def deliver_to_broker(self) -> None:
        self.broker.hear(*self.broker.to_broker.pop(0))
        self.broker.place()

    @rule(which=st.integers(0, 9))
    def a_job_ends(self, which: int) -> None:
        """A job that its agent has told of ends there; the broker hears of that."""
        running = [(agent, uid) for agent in self.agents.values() for uid in agent.started if agent.linked]
        if not running:
            return
        agent, uid = running[which % len(running)]
        if self.store.placed.get(uid) == agent.name and self.broker.queue.get(uid) is None:
            del agent.jobs[uid]
            agent.started.discard(uid)
            self.broker.claims[agent.name].pop(uid, None)
            self.broker.adopted.pop(uid, None)
            self.store.submit(lambda: self.store.placed.pop(uid, None))
            self.ended.add(uid)
            self.broker.place()

    @rule()
    def kill_the_broker(self) -> None:
        self.store.pending.clear()
        for kind, name, item in self.broker.to_agents:  # What was sent may arrive all the same.
            agent = self.agents.get(name)
            if agent is not None and agent.linked and kind == "create":
                agent.create(item.uid, self.needs[item.uid])
        self.broker = Broker(self)
        there = {agent.name for agent in self.agents.values() if agent.linked}
        known = {item.connection for item in self.broker.queue if item.connection} | set(self.broker.adopted.values())
        for name in known - there:
            self.broker.gone(name)
        for name in there:
            self.list_jobs(self.agents[name])
        self.broker.place()

    def list_jobs(self, agent: Agent) -> None:
        """An agent that links tells all its jobs."""
        for uid in list(agent.jobs):
            if self.broker.adopted.get(uid) != agent.name:
                self.broker.hear("created", agent.name, uid, True)
        for uid, where in list(self.broker.adopted.items()):
            if where == agent.name and uid not in agent.jobs:
                self.lost.add(uid)
                self.broker.claims[where].pop(uid, None)

    @rule(name=st.sampled_from("ab"))
    def kill_an_agent(self, name: str) -> None:
        old = next(agent for agent in self.agents if agent[0] == name)
        self.broker.gone(old)
        del self.agents[old]
        self.count += 1
        fresh = f"{name}{self.count}"
        self.agents[fresh] = Agent(fresh)
        self.broker.place()

    @rule(name=st.sampled_from("ab"))
    def an_agent_vanishes_or_returns(self, name: str) -> None:
        """The router gives an agent up that lives; later it comes back, with its jobs."""
        agent = next(agent for key, agent in self.agents.items() if key[0] == name)
        agent.linked = not agent.linked
        if agent.linked:
            for uid in list(agent.jobs):
                if self.broker.adopted.get(uid) != agent.name:
                    del agent.jobs[uid]
                elif uid in self.lost:
                    self.lost.discard(uid)
                    self.broker.claims.setdefault(agent.name, {})[uid] = self.needs[uid]
        else:
            self.broker.gone(agent.name)
        self.broker.place()

    @invariant()
    def no_job_is_started_twice(self) -> None:
        assert all(count == 1 for count in self.starts.values())

    @invariant()
    def no_agent_has_more_than_it_can(self) -> None:
        assert all(sum(agent.jobs.values()) <= SPACE for agent in self.agents.values())
        assert all(sum(claims.values()) <= SPACE for claims in self.broker.claims.values())

    @invariant()
    def nothing_waits_for_an_agent_that_is_idle(self) -> None:
        if self.broker.queue.reserved is None:
            idle = [a for a in self.agents.values() if a.linked and not self.broker.claims.get(a.name)]
            assert not idle or not self.broker.queue.waiting

    def teardown(self) -> None:
        """Let all that is under way come to its end: then every job has a fate, and nothing is taken for nothing."""
        for agent in list(self.agents.values()):
            if not agent.linked:
                self.an_agent_vanishes_or_returns(agent.name[0])
        for _ in range(10_000):
            if self.broker.to_agents:
                self.deliver_to_agent()
            elif self.broker.to_broker:
                self.deliver_to_broker()
            elif self.store.pending:
                self.store.commit()
            elif any(item.state is not QueueState.WAITING for item in self.broker.queue):
                raise AssertionError(f"stuck: {list(self.broker.queue)}")
            else:
                break
        waiting = {item.uid for item in self.broker.queue}
        having = {uid for agent in self.agents.values() for uid in agent.jobs}
        assert self.told <= waiting | having | self.ended | self.lost
        assert set(self.store.rows) == waiting
        claimed = {uid for claims in self.broker.claims.values() for uid in claims}
        assert claimed <= having


TestKills = Kills.TestCase
TestKills.settings = settings(max_examples=150, stateful_step_count=40)
