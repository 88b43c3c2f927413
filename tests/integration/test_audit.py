"""The audit log of a real router: what changes and what is opened, by whom, and no secret."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.support.processes import Agent, Router, start_agent, start_router

TCP = {"Connection": "Upgrade", "Upgrade": "tcp"}
WEBSOCKETS = str(Path(__file__).parents[1] / "jobs" / "websocket_server.py")


def test_changes_and_opened_jobs_have_lines_and_nothing_secret_has(launch: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    router: Router = launch(start_router, workers=2, **{"audit.file": str(path), "control.hold": 1})
    agent: Agent = launch(start_agent, router)
    root = router.post("/tokens", {"name": "root", "role": "admin"}).json()
    admin = {"Authorization": f"Bearer {root['token']}"}
    made = router.post("/tokens", {"name": "ann", "role": "user"}, headers=admin).json()
    other = router.post("/tokens", {"name": "bob", "role": "user"}, headers=admin).json()
    ann, bob = ({"Authorization": f"Bearer {token['token']}"} for token in (made, other))

    choice = {"type": "uid", "uid": agent.uid}
    job = router.post("/jobs/create", {"name": "audited", "agent": choice}, headers=ann).json()
    start = {"args": [sys.executable, WEBSOCKETS], "env": {"A": "s3cret"}, "expose": {"port": "assign"}}
    assert router.post(job["path"] + "/start", start, headers=ann, timeout=60).status_code == 200
    seen = f"{job['path']}/http/seen?token=s3cret"
    for _ in range(3):
        assert router.get(seen, headers=ann).status_code == 200
        assert router.get(job["path"] + "/info", headers=ann).status_code == 200
    url = router.url.replace("http://", "ws://") + f"{job['path']}/http/echo?token=s3cret"
    with connect(url, additional_headers=ann) as websocket:
        websocket.send("s3cret")
        assert websocket.recv(timeout=10) == "s3cret"
    with connect(url.replace("/http/echo", "/tcp/http"), additional_headers=ann):
        pass
    assert router.get(f"{job['path']}/tcp/1?s3cret", headers={**bob, **TCP}).status_code == 403
    assert router.get(seen, headers=bob).status_code == 403
    with pytest.raises(InvalidStatus), connect(url, additional_headers=bob):
        pass
    assert router.post(job["path"] + "/remove", headers=bob).status_code == 403
    assert router.post(job["path"] + "/remove").status_code == 401
    assert router.get(job["path"] + "/file/nothing?remove=1", headers=ann).status_code == 404
    assert (
        router.post(job["path"] + "/remove?why=s3cret", headers={**ann, "X-Request-ID": "the-end"}).status_code == 200
    )
    revoked = requests.delete(f"{router.url}/tokens/{made['id']}", headers=admin, timeout=30)
    assert revoked.status_code == 204

    text = path.read_text()
    for secret in ("s3cret", root["token"], made["token"], other["token"]):
        assert secret not in text
    lines = [json.loads(line) for line in text.splitlines()]
    told = [(line["operation"], line["name"], line["job"], line["status"]) for line in lines]
    uid = job["uid"]
    opened = ("http", "ann", uid, None)
    assert 1 <= told.count(opened) <= 2, "one per worker"
    assert [line for line in told if line != opened] == [
        ("createToken", None, None, 201),
        ("createToken", "root", None, 201),
        ("createToken", "root", None, 201),
        ("create", "ann", uid, 200),
        ("start", "ann", uid, 200),
        ("upgrade", "ann", uid, None),
        ("tcp", "ann", uid, 101),
        ("tcp", "bob", uid, 403),
        ("http", "bob", uid, 403),
        ("upgrade", "bob", uid, 403),
        ("remove", "bob", uid, 403),
        ("unknown", None, None, 401),
        ("download", "ann", uid, 404),
        ("remove", "ann", uid, 200),
        ("revokeToken", "root", None, 204),
    ]
    (last,) = [line for line in lines if line["request"] == "the-end"]
    assert (last["from"], last["role"], last["via"], last["token"]) == ("127.0.0.1", "user", "token", made["id"])
    assert last["path"] == job["path"] + "/remove"
    made_tokens = [line["about"] for line in lines if line["operation"] == "createToken"]
    assert made_tokens[1] == {"token": made["id"], "name": "ann", "role": "user"}


def test_changes_by_commands_have_lines(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    sets = [f"audit.file={str(path)!r}", f"state.dir={str(tmp_path / 'state')!r}", "server.insecure=True"]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "prouter", *arguments, *(part for one in sets for part in ("--set", one))]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)

    token = json.loads(run("token", "create", "ann", "--role", "operator", "--json").stdout)
    assert run("token", "revoke", token["id"]).returncode == 0
    assert run("token", "revoke", "none").returncode != 0
    done = run("invite", "--host", "192.0.2.1", "--name", "lab", "--uses", "3", "--json")
    invitation = json.loads(done.stdout)
    assert run("invite", "revoke", invitation["id"]).returncode == 0
    for reading in ("token", "invite"):
        assert run(reading, "list").returncode == 0

    text = path.read_text()
    assert token["token"] not in text
    assert invitation["url"].partition("token=")[2] not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["operation"], line["status"], line["about"]) for line in lines] == [
        ("createToken", 201, {"token": token["id"], "name": "ann", "role": "operator"}),
        ("revokeToken", 204, {"token": token["id"]}),
        ("revokeToken", 404, {"token": "none"}),
        ("createInvitation", 201, {"invitation": invitation["id"], "name": "lab", "uses": 3}),
        ("revokeInvitation", 204, {"invitation": invitation["id"]}),
    ]
    user = pwd.getpwuid(os.getuid()).pw_name
    assert {(line["name"], line["via"], line["from"]) for line in lines} == {(user, "command", "local")}
    sets[0] = f"audit.file={str(tmp_path)!r}"
    failed = run("token", "create", "bob")
    assert failed.returncode == 0
    assert "the audit log has no line about this" in failed.stderr
