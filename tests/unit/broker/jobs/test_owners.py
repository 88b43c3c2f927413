"""Limits of what one owner's jobs take: decided by the broker, whoever asks and however many ask at once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.broker.jobs.owners import Accounts
from prouter.errors import LimitReached
from prouter.jobs import JobRecord, State
from tests.support.broker_world import BY_UID, Agent, Worker, World, created, restarted

OWNERS = st.sampled_from(["alice", "bob", None])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("count"), st.sampled_from("xyz"), OWNERS, st.booleans(), st.booleans()),
        st.tuples(st.just("measured"), st.sampled_from("xyz"), OWNERS, st.integers(0, 100)),
        st.tuples(st.just("expect"), st.sampled_from("xyz"), OWNERS, st.integers(1, 100)),
        st.tuples(st.just("forget"), st.sampled_from("xyz")),
    ),
    max_size=40,
)


@given(steps=STEPS)
def test_accounts_are_the_sums_of_the_jobs(steps: list[tuple[Any, ...]]) -> None:
    accounts = Accounts()
    alive: dict[str, str | None] = {}
    sizes: dict[str, tuple[str | None, int]] = {}
    for kind, uid, *rest in steps:
        if kind == "count":
            owner, lives, kept = rest
            accounts.count(uid, owner, alive=lives, kept=kept)
            alive.pop(uid, None)
            if lives:
                alive[uid] = owner
            if uid in sizes:
                sizes[uid] = (owner, sizes[uid][1] if kept else 0)
        elif kind == "forget":
            accounts.forget(uid)
            alive.pop(uid, None)
            sizes.pop(uid, None)
        else:
            owner, size = rest
            getattr(accounts, kind)(uid, owner, size)
            sizes[uid] = (owner, size + (sizes[uid][1] if kind == "expect" and uid in sizes else 0))
        for who in ("alice", "bob", None):
            assert accounts.jobs(who) == sum(owner == who for owner in alive.values())
            assert accounts.bytes(who) == sum(size for owner, size in sizes.values() if owner == who)


def create(worker: Worker, key: str, owner: str | None = "alice") -> str:
    return worker.call("jobs.create", name="job", agent=BY_UID, key=key, **({"owner": owner} if owner else {}))


def refused(worker: Worker, call: str, limit: str) -> bool:
    error = worker.results[call]
    return isinstance(error, LimitReached) and error.limit is not None and error.limit.name == limit


def limited(**settings: Any) -> tuple[World, Worker, Worker, Agent]:
    world = World(**settings)
    return world, world.worker(), world.worker("worker-2"), world.agent()


def test_creations_at_the_same_time_count(monkeypatch: pytest.MonkeyPatch) -> None:
    _world, one, other, agent = limited(jobs_per_owner=3)
    held: list[tuple[str, str, dict[str, Any]]] = []
    answer = agent.answer
    monkeypatch.setattr(agent, "answer", lambda *call: held.append(call))
    calls = [(worker, create(worker, f"{worker.uid} {number}")) for number in range(3) for worker in (one, other)]
    assert len(held) == 3
    assert [call in worker.results for worker, call in calls] == [False] * 3 + [True] * 3
    assert all(refused(worker, call, "limits.jobs_per_owner") for worker, call in calls[3:])
    monkeypatch.undo()
    for call in held:
        answer(*call)
    assert all(created(worker, call) for worker, call in calls[:3])
    assert refused(one, create(one, "another"), "limits.jobs_per_owner"), "a created job counts, and once"


def test_a_repeated_request_does_not_count_again() -> None:
    _world, one, other, _agent = limited(jobs_per_owner=1)
    first = created(one, create(one, "key"))
    assert created(other, create(other, "key"))["uid"] == first["uid"]
    assert refused(one, create(one, "another"), "limits.jobs_per_owner")


def test_a_job_counts_until_it_has_ended_or_is_removed() -> None:
    world, worker, _other, agent = limited(jobs_per_owner=2)
    jobs = [created(worker, create(worker, f"key {number}")) for number in range(2)]
    assert refused(worker, create(worker, "a"), "limits.jobs_per_owner")
    assert created(worker, create(worker, "b", "bob")), "others have limits of their own"
    agent.change(jobs[0]["uid"], state=State.FINISHED, finished_at=world.wall())
    assert created(worker, create(worker, "c"))
    assert refused(worker, create(worker, "d"), "limits.jobs_per_owner")
    worker.ask("jobs.remove", **jobs[1]["at"])
    assert created(worker, create(worker, "e"))


def test_jobs_without_an_owner_share_one_account() -> None:
    _world, one, other, _agent = limited(jobs_per_owner=1)
    assert created(one, create(one, "a", None))
    assert refused(other, create(other, "b", None), "limits.jobs_per_owner")
    assert created(one, create(one, "c"))


def test_no_agent_puts_jobs_on_somebodys_account() -> None:
    world, worker, _other, agent = limited(jobs_per_owner=1, sandbox_bytes_per_owner=100)
    hostile = Agent(world, "agent-2", "d" * 32)
    uid = "e" * 32
    hostile.jobs[uid] = JobRecord(uid, hostile.connection, "job", owner="alice")
    world.join(hostile)
    hostile.notify("sandboxes", jobs=[[uid, 1000]])
    job = created(worker, create(worker, "key"))
    assert job["owner"] == "alice"
    agent.change(job["uid"], owner="bob")
    assert worker.ask("jobs.info", **job["at"])["job"]["owner"] == "alice"
    assert created(worker, create(worker, "bob's", "bob"))


@pytest.mark.parametrize("claim", [None, "bob"])
def test_a_new_job_belongs_to_its_creator_whatever_its_agent_says(
    claim: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _world, worker, _other, agent = limited(jobs_per_owner=1)
    answer = agent.answer
    monkeypatch.setattr(agent, "answer", lambda call, op, args: answer(call, op, {**args, "owner": claim}))
    assert created(worker, create(worker, "key"))["owner"] == "alice"
    assert refused(worker, create(worker, "more"), "limits.jobs_per_owner")
    assert created(worker, create(worker, "bob's", "bob"))


def test_a_failed_creation_frees_its_place() -> None:
    _world, worker, _other, agent = limited(jobs_per_owner=1)
    agent.fails["job.create"] = LimitReached("full")
    call = create(worker, "a")
    assert str(worker.results[call]) == "full"
    agent.fails.clear()
    assert created(worker, create(worker, "b"))


def test_jobs_that_only_an_agent_knows_after_a_crash_count() -> None:
    world = World(jobs_per_owner=1)
    worker, agent = world.worker(), world.agent()
    agent.silent = True
    create(worker, "before the crash")
    (asked,) = agent.asked_for
    agent.jobs[asked[1]["uid"]] = JobRecord(asked[1]["uid"], agent.connection, "job", owner="alice")
    world = restarted(world, jobs_per_owner=1)
    worker = world.worker()
    call = create(worker, "after the crash")
    assert call not in worker.results, "it waits for the agent's list"
    again = agent.again(2)
    again.world = world
    world.join(again)
    world.run(1)
    assert refused(worker, call, "limits.jobs_per_owner")


def test_a_job_that_was_promised_before_a_crash_and_has_no_place_left_is_given_up() -> None:
    world = World(jobs_per_owner=1)
    worker, agent = world.worker(), world.agent()
    agent.silent = True
    create(worker, "promised")
    world = restarted(world, jobs_per_owner=1)
    worker = world.worker()
    again = agent.again(2)
    again.world = world
    world.join(again)
    world.env.new_uid()  # these worlds count uids, and this one was given by the broker before
    assert created(worker, create(worker, "another"))
    call = create(worker, "promised")
    assert refused(worker, call, "limits.jobs_per_owner")


def test_an_agent_that_stays_away_after_a_crash_delays_creations_for_a_while_only() -> None:
    world = World(jobs_per_owner=1)
    worker, agent = world.worker(), world.agent()
    agent.silent = True
    create(worker, "promised")
    world = restarted(world, jobs_per_owner=1)
    worker = world.worker()
    world.agent("agent-2", "d" * 32)
    call = worker.call("jobs.create", name="job", agent={"type": "any"}, key="other", owner="alice")
    world.run(11)
    assert created(worker, call)["agent"]["uid"] == "agent-2"


def upload(worker: Worker, job: dict[str, Any], size: int | None) -> LimitReached | None:
    try:
        worker.ask("jobs.upload", **job["at"], size=size)
    except LimitReached as error:
        return error
    return None


def test_bytes_count_over_all_jobs_of_an_owner() -> None:
    _world, worker, _other, agent = limited(sandbox_bytes_per_owner=100)
    assert agent.of("sandboxes") == [{"measure": True}]
    mine = [created(worker, create(worker, f"key {number}")) for number in range(2)]
    others = created(worker, create(worker, "bob's", "bob"))
    agent.notify("sandboxes", jobs=[[mine[0]["uid"], 60], [mine[1]["uid"], 30], [others["uid"], 5], ["unknown", 9]])
    assert upload(worker, mine[0], 11) is not None
    assert upload(worker, mine[0], 10) is None
    assert upload(worker, mine[1], 1) is not None, "what is announced counts at once"
    assert upload(worker, mine[1], None) is not None
    assert upload(worker, others, 95) is None
    assert refused(worker, create(worker, "more"), "limits.sandbox_bytes_per_owner")
    agent.notify("sandboxes", jobs=[[mine[0]["uid"], 60]])
    assert upload(worker, mine[1], None) is None, "until the agent measures"
    worker.ask("jobs.remove", **mine[0]["at"])
    assert upload(worker, mine[1], 70) is None


@pytest.mark.parametrize("sizes", ["x", [["uid"]], [[1, 2]], [["uid", -1]], [["uid", 2**63]], [["uid", True]], [None]])
def test_malformed_sizes_are_counted_and_ignored(sizes: Any) -> None:
    world, worker, _other, agent = limited(sandbox_bytes_per_owner=100)
    job = created(worker, create(worker, "key"))
    agent.notify("sandboxes", jobs=sizes)
    assert world.env.counts["malformed"] == 1
    assert upload(worker, job, 100) is None


def test_an_agent_tells_sizes_of_its_own_jobs_only() -> None:
    world, worker, _other, _agent = limited(sandbox_bytes_per_owner=100)
    job = created(worker, create(worker, "key"))
    world.agent("agent-2", "d" * 32).notify("sandboxes", jobs=[[job["uid"], 1000]])
    assert upload(worker, job, 100) is None


def test_without_a_limit_no_agent_measures() -> None:
    _world, worker, _other, agent = limited()
    assert not agent.of("sandboxes")
    assert upload(worker, created(worker, create(worker, "key")), 10**12) is None


@pytest.mark.parametrize("run", [True, False])
def test_a_job_whose_key_was_withdrawn_counts_no_more_once_it_has_ended(run: bool) -> None:
    """A refused start withdraws the key with the removal; other keys are forgotten because there are many."""
    world = World(jobs_per_owner=1)
    worker, agent = world.worker(), world.agent()
    job = created(worker, create(worker, "one"))
    if run:
        worker.ask("jobs.remove", key="one", **job["at"])
    else:
        world.broker.creations.keys.forget("one")
        agent.change(job["uid"], state=State.FINISHED, exit_code=0)
    assert created(worker, create(worker, "two"))["state"] == "NEW"
