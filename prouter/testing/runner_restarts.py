"""Rules about agents that end, die and return, and about queues, part of `prouter.testing.runner_conformance`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar

import pytest

from prouter.errors import Conflict, PRouterError
from prouter.runners import Capabilities, Kept, SpawnSpec
from prouter.runners.interface import Queued
from prouter.testing.bench import Bench
from prouter.testing.recorded_reports import until

__all__ = ["Queues", "Restarts"]

NOTED = "echo started >> starts; "
"""Leaves a line for each time that a job starts."""
LISTENS = """
import socket, time
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
time.sleep(600)
"""
_AT_ONCE = 12


def starts_of(bench: Bench, job: str) -> int:
    """How often a job has started."""
    path = bench.sandbox(job) / "starts"
    return path.read_text().count("started") if path.exists() else 0


class Restarts:
    """What becomes of jobs when the agent stops, dies, and starts again."""

    fresh: Callable[..., AbstractContextManager[Bench]]
    python: ClassVar[Sequence[str]]
    capabilities: ClassVar[Capabilities]

    @pytest.fixture
    def own(self) -> Iterator[Bench]:
        """A bench of this test alone, whose jobs outlive the agent."""
        with self.fresh(keep_for=60.0) as bench:
            yield bench

    def test_new_state_has_no_jobs(self, own: Bench) -> None:
        """A runner that was never used knows nothing."""
        assert own.open() == {}

    def test_jobs_outlive_the_agent(self, own: Bench) -> None:
        """An agent that is updated must not cost anybody a day's work: the job goes on, and the next agent has it."""
        own.open()
        spec = own.spec("sh", "-c", NOTED + "while [ ! -e end ]; do sleep 0.02; done; exit 6", record={"a": [1, "é"]})
        spawned = own.start(spec)
        own.shut(end_jobs=False)
        kept = own.open()[spec.job]
        assert kept == Kept(spec.job, {"a": [1, "é"]}, spec.remove_on_loss, spawned, None)
        assert spec.job not in own.reports.ends
        assert own.runner.processes(spec.job)[0] == spawned.pid
        (own.sandbox(spec.job) / "end").touch()
        assert own.end(spec.job).exit_code == 6
        assert starts_of(own, spec.job) == 1

    def test_jobs_outlive_an_agent_that_is_killed(self, own: Bench) -> None:
        """The same after SIGKILL: held, running and ended jobs are there, with their newest records and exact ends."""
        running = own.spec("sh", "-c", NOTED + "sleep 600", record={"n": 1})
        ended = own.spec("sh", "-c", NOTED + "exit 7")
        held = own.spec("true")
        agent = own.agent(running, ended, held={held.job: {"n": 3}}, records={running.job: {"n": 2}})
        own.heard(agent, "ready")
        until(lambda: starts_of(own, ended.job), own.patience, "the job has started")
        own.kill(agent)
        kept = own.open()
        assert set(kept) == {running.job, ended.job, held.job}
        assert (kept[running.job].record, kept[held.job].record) == ({"n": 2}, {"n": 3})
        assert kept[running.job].spawned is not None
        assert kept[running.job].exit is None
        assert (kept[held.job].spawned, kept[held.job].exit, kept[held.job].queued) == (None, None, None)
        end = kept[ended.job].exit or own.end(ended.job)
        assert (end.exit_code, end.reason) == (7, None)
        own.runner.kill(running.job)
        assert own.end(running.job).signal == "SIGKILL"
        for job in kept:
            own.runner.forget(job)
        own.shut(end_jobs=False)
        assert own.open() == {}

    def test_end_while_no_agent_is_there_is_kept(self, own: Bench) -> None:
        """Nobody was there to hear of it; the exit status is exact all the same."""
        own.open()
        spec = own.spec("sh", "-c", "while [ ! -e end ]; do sleep 0.02; done; echo over > over; exit 8")
        own.start(spec)
        own.shut(end_jobs=False)
        (own.sandbox(spec.job) / "end").touch()
        own.file(spec.job, "over")
        kept = own.open()[spec.job]
        end = kept.exit or own.end(spec.job)
        assert (end.exit_code, end.signal, end.reason) == (8, None, None)

    @pytest.mark.parametrize("told", [0, 3])
    def test_nothing_is_lost_or_started_twice(self, own: Bench, told: int) -> None:
        """The agent may die in the middle of starts. What the next one knows to have started has started once; what it
        does not know never starts: another agent may have got the job by then.
        """
        specs = [own.spec("sh", "-c", NOTED + "sleep 600") for _ in range(_AT_ONCE)]
        agent = own.agent(*specs)
        own.heard(agent, "kept")
        for _ in range(told):
            own.heard(agent, "spawned")
        own.kill(agent)
        kept = own.open()
        begun = [job for job, known in kept.items() if known.spawned is not None]
        waiting = [job for job, known in kept.items() if known.queued is not None]
        assert len(begun) + len(waiting) >= told
        for job in begun:
            until(lambda job=job: starts_of(own, job), own.patience, "the job has run")  # type: ignore[misc]
        assert [starts_of(own, spec.job) for spec in specs if spec.job not in (*begun, *waiting)] == [0] * (
            len(specs) - len(begun) - len(waiting)
        )
        for job in kept:
            own.runner.kill(job)
        assert all(starts_of(own, spec.job) <= 1 for spec in specs)

    def test_servers_are_reached_after_a_restart(self, own: Bench) -> None:
        """A user's notebook goes on: the next agent finds the job's listeners."""
        spec = own.spec(*self.python, "-c", LISTENS)
        own.open()
        own.start(spec)
        port = int(own.file(spec.job, "stdout"))
        own.shut(end_jobs=False)
        own.open()
        address = own.runner.find(spec.job, port)
        own.runner.connect(spec.job, address, 10.0).close()

    def test_two_agents_cannot_share_the_state(self, own: Bench) -> None:
        """Both would act on the same jobs; the second one is told so, and the first goes on."""
        own.open()
        with pytest.raises(Conflict):
            own.another().open(own.reports)
        assert own.run("sh", "-c", "exit 4").exit_code == 4

    def test_close_ends_everything(self, own: Bench) -> None:
        """An agent that is shut down for good leaves neither processes nor files."""
        own.open()
        code = NOTED + "trap '' TERM; while :; do echo x >> beat; sleep 0.02; done"
        specs = [own.spec("sh", "-c", code) for _ in range(3)]
        for spec in specs:
            own.start(spec)
        own.shut(end_jobs=True)
        for spec in specs:
            until(lambda spec=spec: not own.sandbox(spec.job).exists(), own.patience, "the sandbox is removed")  # type: ignore[misc]
        assert own.open() == {}

    def test_jobs_end_with_an_agent_that_keeps_none(self) -> None:
        """With ``jobs.keep_for: 0`` nothing may run on after the agent was killed."""
        if not self.capabilities.same_machine:
            pytest.skip("jobs on other machines may outlive the agent in any case")
        with self.fresh(keep_for=0.0) as own:
            spec = own.spec("sh", "-c", NOTED + "sleep 600")
            agent = own.agent(spec)
            own.heard(agent, "ready")
            own.kill(agent)
            until(lambda: not own.sandbox(spec.job).exists(), own.patience, "the sandbox is removed")
            assert own.open() == {}


class Queues:
    """Starts that wait."""

    fresh: Callable[..., AbstractContextManager[Bench]]
    capabilities: ClassVar[Capabilities]

    def full(self, bench: Bench) -> AbstractContextManager[None]:
        """Make the next starts of this bench wait, for as long as the block lasts; to be overridden."""
        raise NotImplementedError

    @pytest.fixture
    def waiting(self) -> Iterator[Bench]:
        """A bench with an open runner whose starts may wait."""
        if not self.capabilities.queues:
            pytest.skip("this runner has no queue")
        if type(self).full is Queues.full:
            pytest.fail("this runner promises a queue (Capabilities.queues): override `full`, which makes starts wait")
        with self.fresh(keep_for=60.0) as bench:
            bench.open()
            yield bench

    def _queued(self, bench: Bench, command: str = NOTED + "exit 3") -> SpawnSpec:
        spec = bench.spec("sh", "-c", command, record={"q": 1})
        placed = bench.runner.spawn(spec, 0)
        assert isinstance(placed, Queued), "the place is full"
        assert placed.job == spec.job
        return spec

    def test_start_that_waits_is_queued_and_runs_later(self, waiting: Bench) -> None:
        """`spawn` does not wait longer than it is told to; the start, and then the end, are reported."""
        with self.full(waiting):
            spec = self._queued(waiting)
            with pytest.raises(Conflict):
                waiting.runner.spawn(spec, 0)
        assert waiting.turn(spec.job).job == spec.job
        assert waiting.end(spec.job).exit_code == 3
        assert [one for one in waiting.reports.order[spec.job] if one != "queued"] == ["running", "exited"]
        assert starts_of(waiting, spec.job) == 1

    def test_killed_while_queued_never_runs(self, waiting: Bench) -> None:
        """Users stop and remove jobs that wait: the end is reported, and nothing of it ever runs."""
        with self.full(waiting):
            spec = self._queued(waiting)
            with pytest.raises(Conflict):
                waiting.runner.signal(spec.job, signal.SIGTERM)
            with pytest.raises(Conflict):
                waiting.runner.forget(spec.job)
            waiting.runner.kill(spec.job)
            end = waiting.end(spec.job)
            assert (end.exit_code, end.signal) == (None, None)
            waiting.runner.forget(spec.job)
            with pytest.raises(PRouterError):
                waiting.runner.kill(spec.job)
        assert waiting.run("true").exit_code == 0
        assert starts_of(waiting, spec.job) == 0

    def test_queue_outlives_the_agent(self, waiting: Bench) -> None:
        """A start that waits for a day must not be lost by a restart, nor start twice."""
        with self.full(waiting):
            spec = self._queued(waiting)
            waiting.shut(end_jobs=False)
            kept = waiting.open()[spec.job]
            assert (kept.spawned, kept.exit, kept.record) == (None, None, {"q": 1})
            assert kept.queued is not None
        assert waiting.turn(spec.job).job == spec.job
        assert waiting.end(spec.job).exit_code == 3
        assert starts_of(waiting, spec.job) == 1
