"""Several brokers without sockets that share agents; the test decides when each call and each event arrives."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

from prouter.agent.jobs.origin import Origin
from prouter.agent.service import Service
from prouter.errors import Conflict, NotFound, PRouterError
from prouter.fabric.calls import event_frame
from prouter.fabric.frames import Frame
from prouter.jobs import JobRecord, State
from tests.support.broker_world import Agent, Worker, World, restarted

__all__ = ["ANY", "DIGEST", "TEMPLATE", "End", "Routers", "SharedAgent"]

ANY = {"type": "any"}
DIGEST = "d" * 32
TEMPLATE = "web"


class SharedAgent:
    """An agent with the real service of calls, whose jobs are records.

    Attributes:
        made: the uids of all creations it ever carried out.
        ready: the uids of jobs of the template `TEMPLATE` that it keeps ready.
    """

    def __init__(self, number: int, ready: int = 0) -> None:
        self.uid = f"agent-{number}"
        self.incarnation = f"{number:032x}"
        self.ends: list[End] = []
        self.jobs: dict[str, JobRecord] = {}
        self.made: list[str] = []
        self.ready = [f"{number:016x}{one:016x}" for one in range(ready)]
        self.instead: dict[str, str] = {}
        self.wanted: dict[str, set[str]] = {}
        self.full = False
        self.service = Service(self, lambda: None)  # type: ignore[arg-type]

    def record(self, uid: str) -> JobRecord:
        if uid not in self.jobs:
            raise NotFound(f"job '{uid}' is not found")
        return self.jobs[uid]

    usage = record

    def made_by(self, key: str) -> JobRecord | None:
        return next((record for record in self.jobs.values() if record.key == key), None)

    def create(self, uid: str, connection: str, name: str, origin: Origin) -> JobRecord:
        given = self.instead.get(uid, uid)
        if given not in self.jobs:
            if uid in self.made:
                raise NotFound(f"job '{uid}' is not found")
            if self.full:
                raise PRouterError("no free slot")
            self.made.append(uid)
            record = origin.record(uid, connection, name)
            if origin.template is not None and self.ready:
                given = self.instead[uid] = self.ready.pop()
                record = replace(record, uid=given, instead_of=uid, state=State.RUNNING)
            self._change(record)
        self.wanted.setdefault(given, set()).add(origin.router)
        return self.jobs[given]

    def remove(self, uid: str, *, unwanted_by: str | None = None, withdraw: bool = False) -> JobRecord:
        record = self.record(uid)
        if unwanted_by is not None and self.wanted[uid] - {unwanted_by}:
            raise Conflict("another router has created it", code="job_wanted")
        if withdraw:
            record = replace(record, key=None, digest=None, revision=record.revision + 1)
            self._change(record)
        del self.jobs[uid]
        closed = replace(record, state=State.CLOSED, revision=record.revision + 1)
        self._tell("job.removed", {"record": closed.to_wire()})
        return record

    def _change(self, record: JobRecord) -> None:
        self.jobs[record.uid] = record
        self._tell("job", {"record": record.to_wire()})

    def _tell(self, name: str, body: dict[str, Any]) -> None:
        for end in self.ends:
            if end.ready:
                end.outgoing.append(event_frame(name, body))


class End(Agent):
    """A shared agent's end of its link to one router. Calls and what it sends wait in queues."""

    def __init__(self, world: World, agent: SharedAgent, path: int) -> None:
        hello = {"keep_for": 60.0, "routers": 3, "templates": [TEMPLATE]}
        super().__init__(world, agent.uid, agent.incarnation, path, **hello)
        self.agent = agent
        self.incoming: deque[Any] = deque()
        self.outgoing: deque[Frame] = deque()
        agent.ends.append(self)

    def welcomed(self) -> None:
        wires = [record.to_wire() for record in self.agent.jobs.values()]
        self.outgoing.append(event_frame("jobs", {"jobs": wires, "complete": True}))

    def asked(self, frame: Frame) -> None:
        todo = self.responder.receive(frame)
        if isinstance(todo, Frame):
            self.outgoing.append(todo)
        elif todo is not None:
            self.incoming.append(todo)

    def carry_out(self) -> bool:
        """Carry out the first call that waits; return whether there was one."""
        if not self.incoming:
            return False
        todo = self.incoming.popleft()
        try:
            reply = self.responder.reply(todo.call_id, self.agent.service.carry_out(todo.op, todo.args))
        except PRouterError as error:
            reply = self.responder.reply(todo.call_id, error=error)
        self.outgoing.append(reply)
        return True

    def send(self) -> bool:
        """Send the first message that waits; return whether there was one."""
        if not self.outgoing:
            return False
        self.say(self.outgoing.popleft())
        return True


class Routers:
    """Brokers that share agents.

    Args:
        ready: how many jobs of `TEMPLATE` each agent keeps ready; None if requests name no template.

    Attributes:
        answers: by key, the uids of jobs that clients were told.
        errors: by key, the errors that clients were told.
    """

    def __init__(self, routers: int = 2, agents: int = 3, ready: int | None = None) -> None:
        self._template = {} if ready is None else {"template": TEMPLATE}
        self.worlds = [World(uid=f"router-{number}", hold=10.0) for number in range(routers)]
        for number, world in enumerate(self.worlds):
            world._uids = (number + 1) << 64
        self.workers = [world.worker() for world in self.worlds]
        self.agents = [SharedAgent(number, ready or 0) for number in range(1, agents + 1)]
        self.answers: dict[str, list[str]] = {}
        self.errors: dict[str, list[PRouterError]] = {}
        self._paths = 0
        self._open: list[tuple[Worker, str, str]] = []
        for router in range(routers):
            for agent in range(agents):
                self.link(router, agent)
        self.settle()

    def end(self, router: int, agent: int) -> End | None:
        """The agent's end of its link to the router, if it is linked."""
        ends = [end for end in self.agents[agent].ends if end.world is self.worlds[router]]
        return ends[0] if ends else None

    def link(self, router: int, agent: int) -> None:
        """Link an agent, unless it is linked."""
        if self.end(router, agent) is None:
            self._paths += 1
            self.worlds[router].join(End(self.worlds[router], self.agents[agent], self._paths))

    def cut(self, router: int, agent: int) -> None:
        """Cut a link; what is under way is lost."""
        end = self.end(router, agent)
        if end is not None:
            self.agents[agent].ends.remove(end)
            self.worlds[router].vanish(end)

    def kill(self, router: int) -> None:
        """Kill a broker, and start the next one over what it had stored. Its clients get no answer."""
        before = self.worlds[router]
        for agent in self.agents:
            agent.ends = [end for end in agent.ends if end.world is not before]
        self.worlds[router] = world = restarted(before, uid=f"router-{router}", hold=10.0)
        world.recorder.statements[:0] = before.recorder.statements
        world._uids = before._uids + 1000
        self._open = [waits for waits in self._open if waits[0] is not self.workers[router]]
        self.workers[router] = world.worker()

    def create(self, router: int, key: str, selector: dict[str, Any] | None = None, digest: str = DIGEST) -> None:
        """Have a client ask a router for a job; `answers` or `errors` get what it is told."""
        worker = self.workers[router]
        call = worker.call("jobs.create", name="job", agent=selector or ANY, key=key, digest=digest, **self._template)
        self._open.append((worker, call, key))
        self.collect()

    def collect(self) -> None:
        """Take the answers that have come."""
        for waits in list(self._open):
            worker, call, key = waits
            if call in worker.results:
                self._open.remove(waits)
                answer = worker.results.pop(call)
                if isinstance(answer, PRouterError):
                    self.errors.setdefault(key, []).append(answer)
                else:
                    self.answers.setdefault(key, []).append(answer["job"]["uid"])

    def settle(self, seconds: float = 0.3) -> None:
        """Let everything arrive, and let time pass."""
        for _ in range(2):
            ends = [end for agent in self.agents for end in agent.ends]
            while any([end.send() or end.carry_out() for end in ends]):  # noqa: C419
                pass
            for world in self.worlds:
                world.run(seconds / 2)
        self.collect()

    def jobs(self) -> list[str]:
        """The uids of all jobs that agents have."""
        return [uid for agent in self.agents for uid in agent.jobs]
