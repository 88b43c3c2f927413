"""The router's queue with real routers and agents: kills, files, clients, the command line."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from prouter.client import AsyncRouter as AsyncClient
from prouter.client import NoAgent
from prouter.client import Router as Client
from tests.support.processes import Agent, Router, start_agent, start_router, wait_until

MARK = 'basename "$PROUTER_JOB_PATH" >> {}'


@pytest.fixture(scope="module")
def router(short_dir: Path) -> Iterator[Router]:
    router = start_router(short_dir / "queue", workers=1, control__hold=1)
    yield router
    router.stop()


@pytest.fixture
def agent(short_dir: Path, router: Router, request: pytest.FixtureRequest) -> Iterator[Agent]:
    """An agent that runs one job at a time."""
    agent = start_agent(short_dir / f"agent-{request.node.name[:30]}", router, jobs__max=1)
    yield agent
    agent.stop()


def run(router: Router, script: str, seconds: float = 60.0, **more: Any) -> dict[str, Any]:
    """Run a shell script as a job that may wait; return its info."""
    body = {"name": "queued", "args": ["sh", "-c", script], "port_expected_count": 0, "queue": {"timeout": seconds}}
    answer = router.post("/jobs/run", {**body, **more})
    assert answer.status_code in (200, 202), answer.text
    info: dict[str, Any] = answer.json()
    assert (answer.status_code == 202) == (info["phase"] == "queued")
    return info


def remove_all(router: Router) -> None:
    for job in router.get("/jobs").json()["jobs"]:
        router.post(job["path"] + "/remove")


def test_jobs_wait_for_the_first_agent_and_run_one_after_the_other(
    router: Router, short_dir: Path, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    jobs = [run(router, MARK.format(marks)) for _ in range(4)]
    assert [job["position"] for job in jobs] == [1, 2, 3, 4]
    assert {job["state"] for job in jobs} == {"NEW"}
    assert router.get(jobs[0]["path"] + "/files/").status_code in (404, 409)
    put = router.post(jobs[0]["path"] + "/file/x", data=b"x")
    assert (put.status_code, put.json()["code"]) == (409, "queued")
    told = router.get(jobs[0]["path"] + "/explain").json()
    assert "no agent is connected" in told["text"]
    assert told["phase"] == "queued"
    agent = start_agent(short_dir / "first-agent", router, jobs__max=1)
    try:
        for job in jobs:
            ended = router.post(job["path"] + "/wait?timeout=30").json()
            assert (ended["state"], ended["exit_code"], ended["path"]) == ("FINISHED", 0, job["path"])
        assert marks.read_text().split() == [job["uid"] for job in jobs]
        assert router.get(jobs[0]["path"] + "/logs/stdout").status_code == 200
    finally:
        remove_all(router)
        agent.stop()


def test_a_served_job_keeps_its_address(router: Router, agent: Agent) -> None:
    blocker = run(router, "sleep 60")
    body = {
        "name": "web",
        "args": [sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1"],
        "expose": {"port": "assign"},
        "queue": {"timeout": 60},
    }
    web = router.post("/jobs/run", body).json()
    assert web["phase"] == "queued"
    early = router.get(web["path"] + "/http/", timeout=30)
    assert early.status_code == 503
    assert router.post(blocker["path"] + "/remove").status_code == 200
    wait_until(lambda: router.get(web["path"] + "/info").json()["phase"] == "ready")
    assert router.get(web["path"] + "/http/").status_code == 200
    told = router.get(web["path"] + "/info").json()
    assert told["base_url"] == web["path"] + "/http/"
    assert told["agent"]["uid"] == agent.uid
    remove_all(router)


def test_kills_of_the_broker_and_the_agent_start_nothing_twice_and_forget_nothing(
    router: Router, short_dir: Path, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    marks.touch()
    agent = start_agent(short_dir / "killed-agent", router, jobs__max=3)
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda _: run(router, MARK.format(marks), 300.0), range(40)))
    try:
        for part in (1, 2, 3):
            wait_until(lambda part=part: len(marks.read_text().split()) >= 8 * part, 40.0)  # type: ignore[misc]
            router.kill_broker()
        # A death notice needs a router; without one, the agent counts as away for long.
        wait_until(lambda: any(one["up"] for one in router.get("/connections").json().get("connections", ())), 40.0)
        agent.kill()
        agent = start_agent(short_dir / "killed-agent-2", router, jobs__max=3)

        def ended() -> bool:
            answer = router.get("/jobs?limit=1000&state=NEW&state=PENDING&state=RUNNING")
            return answer.status_code == 200 and not answer.json()["jobs"]

        wait_until(ended, 60.0)
        done = [router.get(job["path"] + "/info").json() for job in jobs]
        ran = marks.read_text().split()
        assert len(ran) == len(set(ran))
        lost = {job["uid"] for job in done if job["reason"] in ("agent_lost", "signaled")}
        assert {job["uid"] for job in done if job["exit_code"] == 0} <= set(ran)
        assert {job["uid"] for job in done} == {job["uid"] for job in done if job["exit_code"] == 0} | lost
        assert len(lost) <= 3
    finally:
        remove_all(router)
        agent.stop()


def test_the_client_waits_uploads_and_runs(router: Router, agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "answer.txt").write_text("42")
    blocker = run(router, "sleep 60")
    with Client(router.url) as client:
        job = client.create("waits", queue=60)
        assert (job.latest.phase, job.latest.position) == ("queued", 1)
        assert "no free slot" in job.explain().text
        router.post(blocker["path"] + "/remove")
        assert job.wait_for_agent(30).state == "NEW"
        with pytest.raises(NoAgent, match="no agent had space"):
            client.run(["true"], queue=0.2)
        job.remove()
        with client.run(["cat", "answer.txt"], upload=tmp_path / "answer.txt", queue=60) as job:
            job.wait()
            assert job.logs().text() == "42"


def test_the_command_line_waits_and_can_be_interrupted(router: Router, agent: Agent) -> None:
    blocker = run(router, "sleep 60")
    command = [sys.executable, "-m", "prouter", "run", "--url", router.url, "--queue", "1m", "--", "echo", "placed"]
    environment = {**os.environ, "HOME": "/nonexistent"}
    first = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    second = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    try:
        wait_until(lambda: len([j for j in router.get("/jobs").json()["jobs"] if j["phase"] == "queued"]) == 2)
        second.send_signal(signal.SIGINT)
        assert second.wait(30) == 130
        wait_until(lambda: len([j for j in router.get("/jobs").json()["jobs"] if j["phase"] == "queued"]) == 1)
        router.post(blocker["path"] + "/remove")
        assert first.communicate(timeout=30)[0] == "placed\n"
        assert first.returncode == 0
    finally:
        first.kill()
        second.kill()
        remove_all(router)


def test_a_start_need_not_be_waited_for(router: Router, agent: Agent, tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": "/nonexistent"}
    blocker = run(router, "sleep 60")
    try:
        with Client(router.url) as client:
            job = client.run(["echo", "later"], queue=60, wait=0, keep=True)
            assert (job.latest.phase, job.latest.position, job.latest.queue is not None) == ("queued", 1, True)
        command = [sys.executable, "-m", "prouter", "run", "--url", router.url, "-d", "--wait", "0s", "--queue", "1m"]
        told = subprocess.run([*command, "--", "true"], env=environment, capture_output=True, text=True, timeout=60)
        assert told.returncode == 0, told.stderr
        shown = [sys.executable, "-m", "prouter", "ps", "--url", router.url]
        table = subprocess.run(shown, env=environment, capture_output=True, text=True, timeout=60).stdout
        assert "NEW (queued, no. 1)" in table
        assert "NEW (queued, no. 2)" in table
        router.post(blocker["path"] + "/remove")
        with Client(router.url) as client:
            assert client.job(job.uid).wait(60).exit_code == 0
            assert client.job(told.stdout.strip()).wait(60).exit_code == 0
            late = client.run(["sleep", "60"], expose={"port": "assign", "timeout": 60}, wait=0.2, queue=60, keep=True)
            assert late.latest.phase in ("queued", "starting")
            other = client.create("direct", queue=60)
            assert other.start(["true"], wait=0).latest.phase == "queued"
    finally:
        remove_all(router)


async def _run_and_leave(url: str) -> tuple[str | None, str | None]:
    async with AsyncClient(url) as client:
        first = await client.run(["true"], queue=60, wait=0, keep=True)
        second = await client.create("direct", queue=60, keep=True)
        await second.start(["true"], wait=0)
        return first.latest.phase, second.latest.phase


def test_the_asynchronous_client_need_not_wait_for_a_start(router: Router, agent: Agent) -> None:
    run(router, "sleep 60")
    try:
        assert asyncio.run(_run_and_leave(router.url)) == ("queued", "queued")
    finally:
        remove_all(router)


def test_events_tell_of_the_queue(router: Router, agent: Agent) -> None:
    blocker = run(router, "sleep 60")
    after = router.get("/events?limit=1", stream=True)
    after.close()
    with Client(router.url) as client, client.events() as events:
        job = run(router, "true", seconds=0.2)
        phases = []
        for event in events:
            told = event.data.get("job")
            if told is not None and told["uid"] == job["uid"]:
                phases.append((told["phase"], told["reason"], told["path"]))
                if told["state"] == "FINISHED":
                    break
    assert phases == [("queued", None, job["path"]), ("failed", "queue_timeout", job["path"])]
    router.post(blocker["path"] + "/remove")
    remove_all(router)
