"""A client's key gives one job, whichever of several routers its requests reach."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prouter.errors import AgentUnavailable, KeyReused, NotFound
from tests.support.shared_agents import ANY, Routers


def one(agent: int) -> dict[str, str]:
    return {"type": "uid", "uid": f"agent-{agent}"}


def test_a_repeated_request_gives_the_job_that_another_router_created() -> None:
    routers = Routers()
    routers.create(0, "key")
    routers.settle()
    routers.create(1, "key")
    routers.settle()
    assert len(routers.jobs()) == 1
    assert routers.answers["key"] == routers.jobs() * 2


def test_two_routers_that_get_a_request_at_the_same_moment_create_one_job() -> None:
    for number in range(8):  # Other keys have other witnesses.
        routers = Routers()
        routers.create(0, f"key-{number}")
        routers.create(1, f"key-{number}")
        routers.settle()
        assert len(routers.jobs()) == 1
        assert routers.answers[f"key-{number}"] == routers.jobs() * 2


def test_a_router_that_is_killed_before_its_agent_hears_of_the_job_leaves_the_key_to_others() -> None:
    routers = Routers()
    routers.create(0, "key")
    for agent in range(3):  # The claims reach their witnesses, and nothing else does.
        end = routers.end(0, agent)
        if end is not None:
            end.carry_out()
    routers.kill(0)
    routers.create(1, "key")
    routers.settle()
    for agent in range(3):
        routers.link(0, agent)
    routers.create(0, "key")
    routers.settle()
    assert len(routers.jobs()) == 1
    assert set(routers.answers["key"]) == set(routers.jobs())


def test_a_restarted_router_waits_for_agents_that_may_know_the_key() -> None:
    routers = Routers()
    routers.kill(1)
    routers.create(0, "key", one(1))
    routers.settle()
    routers.link(1, 1)
    routers.link(1, 2)
    routers.create(1, "key", one(1))
    routers.settle()
    assert len(routers.answers["key"]) == 1
    routers.link(1, 0)
    routers.settle()
    assert routers.answers["key"] == routers.jobs() * 2


def test_a_restarted_router_does_not_wait_for_ever_for_an_agent_that_stays_away() -> None:
    routers = Routers()
    routers.kill(1)
    routers.link(1, 1)
    routers.link(1, 2)
    routers.create(1, "key")
    routers.settle(11)
    routers.settle()
    assert routers.answers["key"] == routers.jobs()


@pytest.mark.parametrize("cut", [False, True])
def test_a_router_that_no_agent_answers_creates_no_second_job(cut: bool) -> None:
    """The network may be cut without a word: then links are up for some seconds more, and calls get no answer."""
    for number in range(8):  # Other keys have other witnesses.
        routers, key = Routers(agents=4), f"key-{number}"
        for agent in range(4 if cut else 0):
            routers.cut(1, agent)
        routers.create(0, key)
        for _ in range(8):
            for end in [end for agent in range(4) if (end := routers.end(0, agent)) is not None]:
                end.carry_out()
                while end.send():
                    pass
        routers.collect()
        assert len(routers.answers[key]) == 1
        routers.create(1, key)
        routers.worlds[1].run(9)
        for agent in range(4):
            routers.link(1, agent)
        routers.settle(1)
        assert len(routers.jobs()) == 1
        assert routers.answers[key] == routers.jobs() * 2


def test_a_router_that_stays_cut_off_from_the_agents_by_which_routers_agree_refuses_to_create() -> None:
    routers = Routers(agents=4)
    for number in range(8):
        routers.create(1, f"key-{number}")
    routers.worlds[1].run(25)
    routers.collect()
    assert [[type(error) for error in routers.errors[f"key-{number}"]] for number in range(8)] == [
        [AgentUnavailable]
    ] * 8
    for number in range(8):
        routers.create(0, f"key-{number}")
    routers.settle()
    assert len(routers.jobs()) == 8


def test_one_agent_that_does_not_answer_keeps_no_key_from_giving_a_job() -> None:
    routers = Routers(agents=4)
    silent = routers.end(0, 0)
    assert silent is not None
    for number in range(8):
        routers.create(0, f"key-{number}", one(2))
    for _ in range(8):
        for agent in (1, 2, 3):
            end = routers.end(0, agent)
            assert end is not None
            while end.carry_out() or end.send():
                pass
        routers.worlds[0].run(1)
    routers.collect()
    assert [len(routers.answers[f"key-{number}"]) for number in range(8)] == [1] * 8


def test_a_key_with_another_request_is_refused_by_every_router() -> None:
    routers = Routers()
    routers.create(0, "key")
    routers.create(1, "key", digest="e" * 32)
    routers.settle()
    routers.create(1, "key", digest="e" * 32)
    routers.settle()
    assert len(routers.jobs()) == 1
    assert [type(error) for error in routers.errors["key"]] == [KeyReused, KeyReused]


def test_a_key_whose_job_an_agent_refused_may_give_another_job_at_every_router() -> None:
    routers = Routers()
    routers.agents[0].full = True
    routers.create(0, "key", one(1))
    routers.settle()
    routers.agents[0].full = False
    for router in (1, 0):
        routers.create(router, "key", one(1))
        routers.settle()
    assert len(routers.errors["key"]) == 1
    assert len(routers.jobs()) == 1
    assert routers.answers["key"] == routers.jobs() * 2


def test_a_job_that_one_router_gave_up_stays_for_the_other_that_created_it_too() -> None:
    routers = Routers()
    for agent in (1, 2):
        routers.cut(0, agent)
        routers.cut(1, agent)
    routers.create(0, "key", one(1))
    end = routers.end(0, 0)
    assert end is not None
    assert end.carry_out()  # the claim
    assert end.send()
    routers.cut(0, 0)
    routers.worlds[0].run(40)
    routers.collect()
    assert isinstance(routers.errors["key"][0], AgentUnavailable)
    routers.create(1, "key", one(1))
    routers.settle()
    routers.link(0, 0)
    routers.settle()
    assert routers.answers["key"] == routers.jobs()
    path = {"connection": routers.agents[0].jobs[routers.jobs()[0]].connection, "job": routers.jobs()[0]}
    call = routers.workers[0].call("jobs.info", **path)
    routers.settle()
    assert routers.workers[0].results[call]["job"]["uid"] == routers.jobs()[0]


def test_a_withdrawn_key_may_give_another_job_at_every_router() -> None:
    routers = Routers()
    routers.create(0, "key")
    routers.settle()
    first = routers.jobs()[0]
    connection = next(agent for agent in routers.agents if agent.jobs).jobs[first].connection
    routers.workers[0].call("jobs.remove", connection=connection, job=first, key="key")
    routers.settle()
    assert routers.jobs() == []
    routers.create(1, "key")
    routers.settle()
    assert routers.answers["key"] == [first, *routers.jobs()]
    assert len(routers.jobs()) == 1


def test_a_removed_job_is_the_answer_to_its_key_at_every_router() -> None:
    routers = Routers()
    routers.create(0, "key")
    routers.settle()
    first = routers.jobs()[0]
    connection = next(agent for agent in routers.agents if agent.jobs).jobs[first].connection
    routers.workers[0].call("jobs.remove", connection=connection, job=first)
    routers.settle()
    routers.create(1, "key")
    routers.settle()
    assert routers.answers["key"] == [first, first]
    with pytest.raises(NotFound):
        routers.workers[1].ask("jobs.info", connection=connection, job=first)


def test_agents_that_link_to_one_router_are_asked_nothing() -> None:
    routers = Routers(routers=1)
    for agent in range(3):
        end = routers.end(0, agent)
        assert end is not None
        routers.cut(0, agent)
        end.hello["routers"] = 1
        end = end.__class__(routers.worlds[0], routers.agents[agent], 100 + agent)
        end.hello["routers"] = 1
        routers.worlds[0].join(end)
    routers.settle()
    routers.create(0, "key")
    calls = [todo.op for agent in routers.agents for end in agent.ends for todo in end.incoming]
    assert calls == ["job.create"]


ROUTERS, AGENTS = 3, 4
ACTIONS = st.one_of(
    st.tuples(st.just("create"), st.integers(0, ROUTERS - 1), st.integers(0, 1)),
    st.tuples(st.sampled_from(["carry out", "send"]), st.integers(0, ROUTERS - 1), st.integers(0, AGENTS - 1)),
    st.tuples(st.just("kill"), st.integers(0, ROUTERS - 1), st.just(0)),
    st.tuples(st.just("link"), st.integers(0, ROUTERS - 1), st.integers(0, AGENTS - 1)),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(ACTIONS, max_size=40), st.sampled_from([None, 1]))
def test_whatever_routers_are_killed_when_each_key_gives_one_job(
    actions: list[tuple[str, int, int]], ready: int | None
) -> None:
    """Calls and events arrive in any order between agents, and routers are killed and started again at any time.

    The same holds if agents have jobs ready, which they give instead of the ones that routers have chosen.
    """
    routers = Routers(ROUTERS, AGENTS, ready)
    for what, router, other in actions:
        end = routers.end(router, other)
        if what == "create":
            routers.create(router, f"key-{other}", ANY)
        elif what == "kill":
            routers.kill(router)
        elif what == "link":
            routers.link(router, other)
        elif end is not None:
            end.carry_out() if what == "carry out" else end.send()
        routers.collect()
    for router in range(ROUTERS):
        for agent in range(AGENTS):
            routers.link(router, agent)
    routers.settle()
    for router in range(ROUTERS):
        for key in ("key-0", "key-1"):
            routers.create(router, key, ANY)
    routers.settle()
    for key in ("key-0", "key-1"):
        assert len(set(routers.answers[key])) == 1, "clients were told of several jobs"
    assert len(routers.jobs()) == 2
    assert not routers.errors
