"""A client's large request, an agent's large record, a long list: nobody else notices, nothing is resent forever."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from prouter.fabric.frames import EVENT, Frame, pack_body
from prouter.jobs import JobRecord
from tests.integration.test_rogue_agents import TOKEN, Rogue, up
from tests.support.processes import Agent, Router, start_agent, start_router, wait_until

MIB = 1024 * 1024
NO_PORT: dict[str, Any] = {"port_expected_count": 0, "expose": {"port": "notify"}}


@pytest.fixture(scope="module")
def pair(short_dir: Path) -> Iterator[tuple[Router, Agent]]:
    with ExitStack() as stack:
        router = start_router(short_dir / "large", server__accept_tokens=[TOKEN])
        stack.callback(router.stop)
        agent = start_agent(short_dir / "large-agent", router, client__token=TOKEN)
        stack.callback(agent.stop)
        yield router, agent


@pytest.fixture(autouse=True)
def nobody_is_lost(pair: tuple[Router, Agent]) -> Iterator[None]:
    """Whatever a test does, the honest agent and the workers keep their links."""
    router, agent = pair

    def losses() -> int:
        log = router.log.read_text()
        return len(re.findall(rf"event=link_down .*agent={agent.uid} ", log)) + log.count("event=broker_lost")

    before = losses()
    yield
    assert losses() == before
    assert up(router)[agent.uid]
    assert router.create(agent.uid)


def run(pair: tuple[Router, Agent], args: list[str], **options: Any) -> Any:
    router, agent = pair
    body = {"name": "large", "args": args, "agent": {"type": "uid", "uid": agent.uid}, **NO_PORT, **options}
    return router.post("/jobs/run", body)


def test_long_arguments_reach_the_job_and_its_record_shows_their_beginning(pair: tuple[Router, Agent]) -> None:
    router, _ = pair
    long = ["{sandbox}" * 1000] * 10 + ["x" * 100_000]
    started = run(pair, ["sh", "-c", 'echo $# ${#1} "${#11}"', "sh", *long])
    assert started.status_code == 200, started.text
    job = started.json()
    assert job["args_shortened"]
    assert len(str(job["args"])) < 5000
    ended = router.post(f"{job['path']}/wait?timeout=20").json()
    assert ended["exit_code"] == 0
    count, first, last = router.get(f"{job['path']}/logs/stdout").text.split()
    assert (count, last) == ("11", "100000")
    assert int(first) > 10_000
    removed = router.post(f"{job['path']}/remove")
    assert removed.status_code == 200
    assert removed.json()["uid"] == job["uid"]


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["true", "{sandbox}" * 10_000], "args.1"),
        (["true", *["{sandbox}" * 1000] * 100], "args and env have"),
        (["true", "x" * 132_000], "args.1"),
        (["a"] * 140_000, "args"),
    ],
)
def test_what_no_program_can_be_started_with_is_refused_before_it_is_tried(
    pair: tuple[Router, Agent], args: list[str], named: str
) -> None:
    router, agent = pair
    path = router.create(agent.uid)
    answer = router.post(f"{path}/start", {"args": args, "env": None, **NO_PORT})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("Invalid request: ")
    assert named in answer.json()["detail"]
    assert len(answer.text) < 2000
    assert router.get(f"{path}/info").json()["state"] == "NEW"


def test_a_failed_start_with_a_long_story_is_told(pair: tuple[Router, Agent]) -> None:
    answer = run(
        pair, ["sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' '\\377' >&2; exit 3"], expose={"port": "assign"}
    )
    assert answer.status_code == 502
    assert "exit code 3" in answer.json()["detail"]
    assert len(answer.text) < 50_000


def say(rogue: Rogue, name: str, **body: Any) -> None:
    rogue.send([Frame(EVENT, payload=pack_body({"event": name, "body": body}))])


def connection(router: Router, uid: str) -> str:
    def found() -> str:
        listed = router.get("/connections").json()["connections"]
        return next((one["uid"] for one in listed if one["peer"]["auth"]["uid"] == uid), "")

    return wait_until(found, 10, "the agent is linked")


def record(at: str, **fields: Any) -> dict[str, Any]:
    wire = JobRecord(uuid.uuid4().hex, at, "rogue", created_at=1.0, revision=1).to_wire()
    return {**wire, "state": "RUNNING", **fields}


def test_records_that_are_too_large_are_refused_alone(pair: tuple[Router, Agent]) -> None:
    router, _ = pair

    def refused() -> int:
        return int(re.findall(r"prouter_broker_malformed_total (\d+)", router.get("/metrics").text)[0])

    with Rogue(router, "large-records") as rogue:
        at = connection(router, "large-records")
        before = refused()
        for size in (300_000, 1_900_000, 2_500_000, 7_000_000):
            say(rogue, "job", record=record(at, error="e" * size))
        say(rogue, "jobs", jobs=[record(at, error="e" * 300_000), record(at, name="good")], complete=False)
        wait_until(lambda: refused() >= before + 5, 20, "they are counted")
        names = [job["name"] for job in router.get("/jobs?agent=large-records").json()["jobs"]]
        assert names == ["good"]
        assert up(router)["large-records"]


def test_long_lists_come_in_pages_and_are_whole(pair: tuple[Router, Agent]) -> None:
    router, _ = pair
    with ExitStack() as stack:
        for number in range(30):
            stack.enter_context(Rogue(router, f"many-{number}", properties={"long": "p" * 40_000}))
        rogue = stack.enter_context(Rogue(router, "many-jobs", properties={"long": "p" * 20_000}))
        at = connection(router, "many-jobs")
        jobs = [record(at, args=["a" * 4000]) for _ in range(200)]
        say(rogue, "jobs", jobs=jobs, complete=True)
        wait_until(lambda: at in router.get("/jobs?agent=many-jobs&limit=1").text, 10, "jobs are there")
        found: list[str] = []
        following: str | None = ""
        while following is not None:
            answer = router.get(f"/jobs?agent=many-jobs&limit=1000{following and '&cursor=' + following}")
            assert len(answer.content) < 1.2 * MIB
            found += [job["uid"] for job in answer.json()["jobs"]]
            following = answer.json()["next"]
        assert sorted(found) == sorted(job["uid"] for job in jobs)
        wait_until(lambda: sum(uid.startswith("many-") for uid in up(router)) == 31, 10, "all are linked")
        answer = router.get("/connections")
        assert len(answer.content) > 1.1 * MIB
        assert len(answer.json()["connections"]) >= 32
        assert router.get("/connections", headers={"If-None-Match": answer.headers["ETag"]}).status_code in (200, 304)


def test_a_key_with_another_body_is_422_on_every_worker(pair: tuple[Router, Agent]) -> None:
    router, agent = pair
    by = {"type": "uid", "uid": agent.uid}
    key = {"Idempotency-Key": uuid.uuid4().hex}

    def created(name: str) -> Any:
        return router.post("/jobs/create", {"name": name, "agent": by}, headers=key)

    path = created("one").json()["path"]
    for _ in range(6):
        assert created("one").json()["path"] == path
        answer = created("two")
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
    start: dict[str, Any] = {"args": ["sleep", "100"], "env": {}, "port_expected_count": 0}
    for _ in range(3):
        assert router.post(f"{path}/start", start, headers=key).status_code == 200
        changed = {**start, "args": ["sleep", "200"]}
        assert router.post(f"{path}/start", changed, headers=key).status_code == 422
        assert router.post(f"{path}/start", {**start, "cwd": None, "limits": None}, headers=key).status_code == 200
    assert router.post(f"{path}/remove").status_code == 200
