"""The HTTP API with a real router and a real agent: the original's contract, and what was added to it."""

from __future__ import annotations

import json
import socket
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from prouter.web.admin import responses
from tests.support.processes import Agent, Router, wait_until

NO_PORT = {"port_expected_count": 0}


@pytest.fixture
def path(router: Router, agent: Agent) -> Iterator[str]:
    """A new job's path; removed afterwards."""
    path = router.create(agent.uid)
    yield path
    router.post(path + "/remove")


def problem(answer: requests.Response, status: int, text: str) -> dict[str, Any]:
    """A problem document with this status and text in its detail."""
    assert answer.status_code == status, answer.text
    document: dict[str, Any] = answer.json()
    responses.Problem.model_validate(document)
    assert answer.headers["X-PRouter-Error"] == document["code"]
    assert answer.headers["X-Request-ID"] == document["request_id"]
    assert text in document["detail"]
    return document


def sse(answer: requests.Response) -> Iterator[dict[str, Any]]:
    """Events of a stream as maps, comments left out."""
    fields: dict[str, Any] = {}
    for line in answer.iter_lines(chunk_size=1):
        name, separator, value = line.decode().partition(": ")
        if separator and name:
            fields[name] = json.loads(value) if name == "data" else value
        elif not line and "event" in fields:
            yield fields
            fields = {}
        elif not line:
            fields = {}


# -- the original's contract ------------------------------------------------------------------------------------


def test_the_life_of_a_job(router: Router, agent: Agent) -> None:
    created = router.post("/jobs/create", {"name": "life", "agent": {"type": "uid", "uid": agent.uid}})
    info = created.json()
    responses.JobInfo.model_validate(info)
    assert (info["state"], info["name"], info["sender"]["direction"]) == ("NEW", "life", "CLIENT")
    path = info["path"]
    assert router.get(path + "/info").json() == info
    assert router.post(path + "/wait").json()["state"] == "NEW"
    started = router.start(path, ["sh", "-c", "sleep 0.2; exit 3"], **NO_PORT)
    responses.JobInfo.model_validate(started)
    assert started["state"] == "RUNNING"
    ended = router.post(path + "/wait/")
    assert ended.status_code == 200
    assert {name: ended.json()[name] for name in ("state", "exit_code", "reason")} == {
        "state": "FINISHED",
        "exit_code": 3,
        "reason": "exited",
    }
    assert router.post(path + "/info").json()["state"] == "FINISHED"
    problem(router.post(path + "/start", {"args": ["true"], "env": {}}), 409, "")
    removed = router.post(path + "/remove")
    assert (removed.status_code, removed.json()["state"]) == (200, "FINISHED")
    problem(router.get(path + "/info"), 404, f"job '{info['uid']}' is not found")
    problem(router.get(path + "/file/"), 404, f"job '{info['uid']}' is not found")


def test_info_and_connections(router: Router, agent: Agent) -> None:
    info = router.get("/info")
    responses.Info.model_validate(info.json())
    assert info.headers["Cache-Control"] == "no-store, must-revalidate"
    found = router.get("/connections/")
    responses.Connections.model_validate(found.json())
    assert "token" not in found.text
    mine = [one for one in found.json()["connections"] if one["peer"]["auth"]["uid"] == agent.uid]
    assert [(one["mode"], one["up"]) for one in mine] == [("SERVER", True)]
    assert router.get(f"/connections/{mine[0]['uid']}").json()["peer"] == mine[0]["peer"]

    page = router.get("/connections?limit=1")
    responses.Connections.model_validate(page.json())
    assert [one["uid"] for one in page.json()["connections"]] == [found.json()["connections"][0]["uid"]]
    assert "next" not in found.json()
    if len(found.json()["connections"]) == 1:
        assert page.json()["next"] is None
    last = found.json()["connections"][-1]
    moment = datetime.fromisoformat(last["since"].replace("Z", "+00:00")).timestamp()
    after = router.get(f"/connections?cursor={moment + 1:.3f}-{'f' * 32}").json()
    assert after == {"connections": [], "next": None}
    for wrong in ("limit=0", "limit=1001", "cursor=x", f"cursor=nan-{'f' * 32}"):
        problem(router.get(f"/connections?{wrong}"), 400, "query parameter")

    def unchanged() -> bool:
        etag = router.get("/connections?limit=5").headers["ETag"]
        if router.get("/connections?limit=5", headers={"If-None-Match": etag}).status_code != 304:
            return False
        etag = router.get("/connections").headers["ETag"]
        return router.get("/connections", headers={"If-None-Match": etag}).status_code == 304

    wait_until(unchanged)


def test_what_is_unknown_is_named(router: Router, agent: Agent, path: str) -> None:
    connection, job = path.split("/")[2:]
    problem(router.get(f"/jobs/nowhere/{job}/info"), 404, "connection 'nowhere' is not found")
    problem(router.post(f"/jobs/{connection}/nothing/start", {"args": ["true"], "env": {}}), 404, "job 'nothing'")
    body = {"name": "n", "agent": {"type": "uid", "uid": "nobody"}}
    problem(router.post("/jobs/create", body), 404, "no connected agent with uid 'nobody'")
    problem(router.post("/jobs/create", {"name": "n"}), 400, "Invalid request: agent: ")
    problem(router.post(path + "/start", {"args": ["true"]}), 400, "Invalid request: env: ")


def test_an_agent_is_selected_among_several(router: Router, agent: Agent) -> None:
    body = {"name": "n", "agent": {"type": "select", "uids": ["nobody", agent.uid]}}
    info = router.post("/jobs/create", body).json()
    assert info["agent"]["uid"] == agent.uid
    router.post(info["path"] + "/remove")


# -- additions --------------------------------------------------------------------------------------------------


def test_a_key_makes_a_repeat_the_same_job_on_every_worker(router: Router, agent: Agent) -> None:
    body = {"name": "once", "agent": {"type": "uid", "uid": agent.uid}, "args": ["true"], **NO_PORT}
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: router.post("/jobs/run", body, headers=headers), range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["path"] for answer in answers}) == 1
    assert len(router.get("/jobs?name=once").json()["jobs"]) == 1
    router.post(answers[0].json()["path"] + "/remove")


def test_wait_gives_up_when_told_to(router: Router, path: str) -> None:
    router.start(path, ["sleep", "60"], **NO_PORT)
    waited = router.post(path + "/wait?timeout=0.1")
    assert (waited.status_code, waited.json()["state"]) == (202, "RUNNING")
    assert router.post(path + "/stop", {"grace": 5}).json()["reason"] in ("stopped", None)
    assert router.post(path + "/wait").json()["reason"] == "stopped"


def test_a_client_that_leaves_ends_its_wait(router: Router, path: str) -> None:
    def waits() -> int:
        for line in router.get("/metrics").text.splitlines():
            if line.startswith("prouter_broker_waits "):
                return int(float(line.split()[1]))
        raise AssertionError("no such figure")

    router.start(path, ["sleep", "60"], **NO_PORT)
    before = waits()
    url = urlsplit(router.url)
    with socket.create_connection((url.hostname or "", url.port or 0)) as client:
        client.sendall(f"POST {path}/wait HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
        wait_until(lambda: waits() == before + 1)
    wait_until(lambda: waits() == before)


def test_run_waits_for_the_end(router: Router, agent: Agent) -> None:
    body = {"name": "r", "agent": {"type": "uid", "uid": agent.uid}, "args": ["sh", "-c", "kill -9 $$"], **NO_PORT}
    info = router.post("/jobs/run?wait=20", body).json()
    assert (info["state"], info["reason"], info["signal"]) == ("FINISHED", "signaled", "SIGKILL")
    router.post(info["path"] + "/remove")


def test_a_start_that_fails_says_why(router: Router, path: str) -> None:
    answer = router.post(path + "/start", {"args": ["sh", "-c", "echo no such luck >&2; exit 1"], "env": {}})
    problem(answer, 502, "no such luck")
    assert router.get(path + "/info").json()["reason"] == "start_failed"


def test_signals_and_usage(router: Router, path: str) -> None:
    router.start(path, ["sh", "-c", "trap 'exit 7' USR1; while :; do sleep 0.01; done"], **NO_PORT)
    assert router.get(path + "/info?usage=1").json()["rss_bytes"] > 0
    wait_until(lambda: (router.get(path + "/info").json()["rss_bytes"] or 0) > 0)
    assert router.get(path + "/info").json()["cpu_seconds"] > 0
    assert router.post(path + "/signal", {"signal": "USR1"}).status_code == 200
    assert router.post(path + "/wait").json()["reason"] in ("exited", "signaled")


def test_a_real_time_signal_goes_by_the_name_it_is_reported_by(router: Router, agent: Agent) -> None:
    for number, (name, reported) in enumerate({"RTMIN+3": "SIGRTMIN+3", "SIGRTMAX-1": "SIGRTMIN+29"}.items()):
        path = router.create(agent.uid, f"signalled-{number}")
        router.start(path, ["sleep", "60"], **NO_PORT)
        assert router.post(path + "/signal", {"signal": name}).status_code == 200
        ended = router.post(path + "/wait").json()
        assert (ended["reason"], ended["signal"]) == ("signaled", reported)
        again = router.create(agent.uid, f"signalled-{number}-again")
        router.start(again, ["sleep", "60"], **NO_PORT)
        assert router.post(again + "/signal", {"signal": ended["signal"]}).status_code == 200
        assert router.post(again + "/wait").json()["signal"] == reported


def test_jobs_are_listed_in_pages(router: Router, agent: Agent) -> None:
    name = uuid.uuid4().hex
    paths = [router.create(agent.uid, name) for _ in range(5)]
    found: list[str] = []
    cursor = ""
    while True:
        page = router.get("/jobs", params={"name": name, "limit": 2, "cursor": cursor}).json()
        responses.JobList.model_validate(page)
        found += [job["path"] for job in page["jobs"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert found == paths[::-1]
    assert router.get(f"/jobs?name={name}&state=RUNNING").json() == {"jobs": [], "next": None}
    for path in paths:
        router.post(path + "/remove")


def test_a_draining_agent_takes_no_jobs(router: Router, agent: Agent, path: str) -> None:
    connection = path.split("/")[2]
    for verb, draining, status in (("drain", True, {429, 503}), ("resume", False, {200})):
        answer = router.post(f"/connections/{connection}/{verb}")
        responses.Connection.model_validate(answer.json())
        assert answer.json()["draining"] is draining
        assert router.get(f"/connections/{connection}").json()["draining"] is draining
        created = router.post("/jobs/create", {"name": "n", "agent": {"type": "uid", "uid": agent.uid}})
        assert created.status_code in status
    router.post(created.json()["path"] + "/remove")


def test_health_figures_and_the_page(router: Router) -> None:
    assert router.get("/healthz").json() == {"status": "ok"}
    assert router.get("/readyz").json() == {"status": "ready"}
    assert "prouter_broker_up 1" in router.get("/metrics").text
    assert router.get("/openapi.json").json()["openapi"] == "3.1.0"
    assert "<title>pRouter</title>" in router.get("/").text


# -- logs and events --------------------------------------------------------------------------------------------


def test_a_followed_log_is_whole_and_ends_with_the_job(router: Router, path: str) -> None:
    code = "import sys, time\nfor i in range(300):\n print(i, flush=True); i % 100 or time.sleep(0.05)"
    router.start(path, ["python3", "-c", code], **NO_PORT)
    whole = "".join(f"{number}\n" for number in range(300))
    with ThreadPoolExecutor(20) as pool:
        plain = pool.map(lambda _: router.get(path + "/logs/stdout?follow=1").text, range(10))
        events = pool.map(
            lambda _: list(
                sse(router.get(path + "/logs/stdout?follow=1", stream=True, headers={"Accept": "text/event-stream"}))
            ),
            range(10),
        )
        assert set(plain) == {whole}
        for found in events:
            assert "".join(event["data"]["text"] for event in found[:-1]) == whole
            assert (found[-1]["event"], found[-1]["data"]["exit_code"]) == ("end", 0)
    assert router.get(path + "/logs/stdout?tail=2").text == "298\n299\n"
    half = router.get(path + "/logs/stdout?offset=400")
    assert half.text == whole[400:]
    assert half.headers["X-PRouter-Log-Offset"] == "400"
    assert router.get(path + "/logs/stderr?follow=1").text == ""


def test_events_tell_a_jobs_life_and_resume(router: Router, agent: Agent) -> None:
    found: list[dict[str, Any]] = []
    connected = threading.Event()

    def follow() -> None:
        with router.get("/events", stream=True) as answer:
            connected.set()
            for event in sse(answer):
                if event["data"].get("job", {}).get("name") == "watched":
                    found.append(event)
                    if event["event"] == "job.removed":
                        return

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    assert connected.wait(10)
    path = router.create(agent.uid, "watched")
    router.start(path, ["true"], **NO_PORT)
    router.post(path + "/wait")
    router.post(path + "/remove")
    follower.join(10)
    assert [event["event"] for event in found][-1] == "job.removed"
    states = [event["data"]["job"]["state"] for event in found]
    assert [state for number, state in enumerate(states) if state not in states[:number]][:1] == ["NEW"]
    assert {"RUNNING", "FINISHED"} <= set(states)
    ids = [int(event["id"]) for event in found]
    assert ids == sorted(set(ids))
    with router.get("/events", stream=True, headers={"Last-Event-ID": str(ids[0] - 1)}) as answer:
        again = sse(answer)
        assert next(again)["data"] == found[0]["data"]
