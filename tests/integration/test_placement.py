"""Resources and requirements with real routers and agents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Agent, Router, start_agent, start_router, wait_until


@pytest.fixture(scope="module")
def routers(short_dir: Path) -> Iterator[tuple[Router, Router, Agent]]:
    """Two routers that share one agent with two licences."""
    one = start_router(short_dir / "placement-one", workers=1)
    try:
        two = start_router(short_dir / "placement-two", workers=1)
        try:
            both = [router.agents for router in (one, two)]
            agent = start_agent(
                short_dir / "placement-agent",
                one,
                client__address=both,
                jobs__resources={"matlab": 2},
                properties={"gpus": 4},
            )
            try:
                for router in (one, two):
                    wait_until(lambda router=router: router.get("/connections").json()["connections"])  # type: ignore[misc]
                yield one, two, agent
            finally:
                agent.stop()
        finally:
            two.stop()
    finally:
        one.stop()


def test_routers_share_an_agents_resources(routers: tuple[Router, Router, Agent]) -> None:
    one, two, _ = routers
    wanted = {"type": "any", "require": {"gpus": ">=4"}, "resources": {"matlab": 1, "cpus": 0.5}, "strategy": "pack"}
    jobs = []
    for router in (one, two):
        answer = router.post("/jobs/create", {"name": "licensed", "agent": wanted})
        assert answer.status_code == 200, answer.text
        assert answer.json()["resources"] == {"matlab": 1, "cpus": 0.5}
        jobs.append((router, answer.json()["path"]))
    refused = [router.post("/jobs/create", {"name": "third", "agent": wanted}) for router in (one, two)]
    assert [answer.status_code for answer in refused] == [429, 429]
    assert refused[0].json()["limit"] == {"name": "jobs.resources.matlab", "value": 2}
    router, path = jobs[0]
    assert router.post(path + "/remove").status_code == 200
    again = router.post("/jobs/create", {"name": "third", "agent": wanted})
    assert again.status_code == 200, again.text
    router.post(again.json()["path"] + "/remove")
    jobs[1][0].post(jobs[1][1] + "/remove")


def test_connections_show_resources(routers: tuple[Router, Router, Agent]) -> None:
    (connection,) = routers[0].get("/connections").json()["connections"]
    assert connection["resources"]["matlab"] == 2
    assert connection["resources"]["cpus"] >= 1


def test_odd_requests_are_refused(routers: tuple[Router, Router, Agent]) -> None:
    for wrong, told in (
        ({"require": {"gpus": {"=>": 1}}}, "unknown operator"),
        ({"resources": {"gpus": -1}}, "gpus"),
        ({"strategy": "best"}, "spread"),
    ):
        answer = routers[0].post("/jobs/create", {"name": "x", "agent": {"type": "any", **wrong}})
        assert answer.status_code == 400
        assert told in answer.json()["detail"]


def test_a_job_that_was_queued_has_the_same_path_on_every_router(routers: tuple[Router, Router, Agent]) -> None:
    one, two, _ = routers
    wanted = {"type": "any", "resources": {"matlab": 2}}
    blocker = two.post("/jobs/create", {"name": "blocker", "agent": wanted}).json()["path"]
    body = {"name": "queued", "agent": wanted, "args": ["true"], "port_expected_count": 0, "queue": {"timeout": 60}}
    queued = one.post("/jobs/run", body)
    assert queued.status_code == 202, queued.text
    assert queued.json()["phase"] == "queued"
    path = queued.json()["path"]
    unknown = two.get(path + "/info")
    assert (unknown.status_code, unknown.json()["code"]) == (503, "agent_elsewhere")
    assert two.post(blocker + "/remove").status_code == 200
    for router in (one, two):
        assert router.post(path + "/wait?timeout=30").json()["exit_code"] == 0
        assert router.get(path + "/info").json()["path"] == path
        assert router.get(path + "/logs/stdout").status_code == 200
    assert two.post(path + "/remove").status_code == 200
