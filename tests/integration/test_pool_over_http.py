"""Jobs that are kept ready, as clients get them: at once, each once, whatever dies meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from prouter.client import Job, Router
from tests.support.job_manager import SERVER, python
from tests.support.processes import Agent, processes_with, start_agent, start_router, wait_until
from tests.support.processes import Router as RouterProcess

WEB = {"args": python(SERVER, "{socket}"), "expose": {"port": "unix"}}


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RouterProcess]:
    process = start_router(tmp_path_factory.mktemp("router"), workers=1)
    yield process
    process.stop()


@pytest.fixture(scope="module")
def agent(router: RouterProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent that keeps five jobs ready."""
    process = pooled(tmp_path_factory.mktemp("agent") / "many", router, 5)
    yield process
    process.stop()


def pooled(directory: Path, router: RouterProcess, size: int, **sets: Any) -> Agent:
    """An agent that keeps jobs of the template ready; the router knows that they are."""
    process = start_agent(
        directory, router, identity__uid=directory.name, jobs__pool={"web": {**WEB, "size": size}}, **sets
    )
    wait_until(lambda: ready(router, process) == size)
    return process


def ready(router: RouterProcess, agent: Agent) -> int:
    listed = router.get("/connections").json()["connections"]
    return sum(one["pool"]["web"]["ready"] for one in listed if one["peer"]["auth"]["uid"] == agent.uid and one["pool"])


def sandboxes(agent: Agent) -> set[str]:
    return {path.name for path in (agent.directory / "jobs").iterdir() if len(path.name) == 32}


def test_twenty_clients_get_twenty_jobs(router: RouterProcess, agent: Agent) -> None:
    warm = sandboxes(agent)
    with Router(router.url) as client, ThreadPoolExecutor(20) as threads:
        jobs = list(threads.map(lambda n: client.run(template="web", name=f"n{n}", agent=agent.uid), range(20)))
        assert len({job.uid for job in jobs}) == len({job.latest.pid for job in jobs}) == 20
        assert warm < {job.uid for job in jobs}
        assert {job.latest.state for job in jobs} == {"RUNNING"}
        assert [job.latest.name for job in jobs] == [f"n{n}" for n in range(20)]
        (one,) = list(client.list(name="n7"))
        assert (one.uid, one.latest.template) == (jobs[7].uid, "web")
        assert router.get(jobs[7].path + "/http/x").status_code == 200
        list(threads.map(Job.remove, jobs))
    wait_until(lambda: len(sandboxes(agent)) == 5, what="the pool is full again, and nothing else is left")


def test_a_created_job_takes_files_and_is_started_by_its_template(
    router: RouterProcess, agent: Agent, tmp_path: Path
) -> None:
    with Router(router.url) as client:
        job = client.create("mine", agent=agent.uid, template="web")
        assert job.latest.state == "RUNNING"
        (tmp_path / "a.txt").write_text("hello")
        job.upload(tmp_path / "a.txt")
        assert job.start(limits={"timeout": 100}).latest.state == "RUNNING"
        assert router.get(job.path + "/file/a.txt").text == "hello"
        job.remove()
    refused = router.post("/jobs/run", {"name": "n", "template": "web", "env": {"A": "1"}})
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")
    assert "env: the template says this already" in refused.json()["detail"]
    unknown = router.post("/jobs/run", {"name": "n", "template": "nope", "agent": {"type": "uid", "uid": agent.uid}})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "no_template")


def test_an_agent_with_a_ready_job_is_preferred(router: RouterProcess, agent: Agent, tmp_path: Path) -> None:
    empty = start_agent(tmp_path, router, jobs__pool={"web": {**WEB, "size": 0}})
    try:
        wait_until(lambda: ready(router, agent))
        answer = router.post("/jobs/create", {"name": "n", "template": "web", "agent": {"type": "any"}}).json()
        assert (answer["agent"]["uid"], answer["state"]) == (agent.uid, "RUNNING")
        router.post(f"/connections/{answer['path'].split('/')[2]}/drain")
        wait_until(lambda: sandboxes(agent) == {answer["uid"]}, what="a draining agent keeps nothing ready")
        other = router.post("/jobs/create", {"name": "n", "template": "web", "agent": {"type": "any"}}).json()
        assert (other["agent"]["uid"], other["state"]) == (empty.uid, "NEW")
    finally:
        empty.stop()


def test_each_job_is_given_once_though_broker_and_agent_die(router: RouterProcess, tmp_path: Path) -> None:
    directory = tmp_path / "dying"
    agent = pooled(directory, router, 2, jobs__keep_for=60)

    def run(number: int) -> Job:
        return client.run(template="web", name=f"n{number}", agent=agent.uid, keep=True)

    with Router(router.url, retry_for=60) as client, ThreadPoolExecutor(6) as threads:
        first = [threads.submit(run, number) for number in range(6)]
        first[0].result(60)
        router.kill_broker()
        jobs = [one.result(60) for one in first]

        wait_until(lambda: ready(router, agent) == 2)
        second = [threads.submit(run, number) for number in range(6, 12)]
        second[0].result(60)
        agent.kill()
        agent = pooled(directory, router, 2)
        jobs += [one.result(60) for one in second]

        assert len({job.uid for job in jobs}) == len({job.latest.pid for job in jobs}) == 12
        assert [job.info().state for job in jobs] == ["RUNNING"] * 12
        assert {job.uid for job in client.list(agent=agent.uid)} == {job.uid for job in jobs}
        wait_until(lambda: len(sandboxes(agent)) == 12 + 2, what="no job that nobody has asked for is left")
        list(threads.map(Job.remove, jobs))
    assert agent.stop() == 0
    assert sandboxes(agent) == set()
    wait_until(lambda: processes_with(str(directory)) == [])
