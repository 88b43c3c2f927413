"""Bridges and access: which credentials reach the job, who may make, list and end one; it ends with its token."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
import requests
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.integration.test_bridges import peer_server
from tests.support.processes import Agent, Router, start_agent, start_router, wait_until

WEBSOCKETS = str(Path(__file__).parents[1] / "jobs" / "websocket_server.py")
FRONT = {
    "X-PRouter-User": "root",
    "X-PRouter-Assertion": "s3cret",
    "X_Auth-Token": "s3cret",
    "Cookie": "mine=1; _oauth2_proxy_0=s3cret",
}
"""Fields in which something in front of the router may pass credentials on."""


def test_a_bridge_ends_with_its_token_and_passes_no_credentials(launch: Callable[..., Any]) -> None:
    sets = {"control.drop_headers": ["X-Auth-*"], "control.drop_cookies": ["_oauth2_proxy*"]}
    router: Router = launch(start_router, workers=2, **sets)
    agent: Agent = launch(start_agent, router)
    root = {"Authorization": f"Bearer {router.post('/tokens', {'name': 'root', 'role': 'admin'}).json()['token']}"}
    made = {
        name: router.post("/tokens", {"name": name, "role": role}, headers=root).json()
        for name, role in (("ann", "user"), ("bob", "user"), ("eve", "viewer"))
    }
    ann, bob, eve = ({"Authorization": f"Bearer {made[name]['token']}"} for name in ("ann", "bob", "eve"))
    choice = {"type": "uid", "uid": agent.uid}
    job = router.post("/jobs/create", {"name": "j", "agent": choice}, headers=ann).json()["path"]
    start = {"args": [sys.executable, WEBSOCKETS], "env": {}, "expose": {"port": "assign"}}
    assert router.post(f"{job}/start", start, headers=ann, timeout=60).status_code == 200

    url = router.url.replace("http", "ws") + f"{job}/http/headers"
    with connect(url, additional_headers={**ann, **FRONT}) as websocket:
        check_fields(json.loads(websocket.recv(timeout=10)))
    with peer_server() as peer:
        for fields, status in ((bob, 403), (eve, 403), ({}, 401), (ann, 200)):
            body = {"url": peer.url}
            answer = router.post(f"{job}/wsconnect/headers?token=s3cret", body, headers={**fields, **FRONT})
            assert answer.status_code == status
        uid = answer.headers["X-PRouter-Bridge"]
        end = peer.next()
        check_fields(json.loads(end.recv(timeout=10)))
        for fields, status in ((bob, 200), (eve, 200), ({}, 401)):
            listed = router.get(f"{job}/wsconnect", headers=fields)
            assert listed.status_code == status
            assert "s3cret" not in listed.text
        for fields, status in ((bob, 403), (eve, 403), ({}, 401)):
            ended = requests.delete(f"{router.url}{job}/wsconnect/{uid}", headers=fields, timeout=30)
            assert ended.status_code == status
        other = router.post("/jobs/create", {"name": "other", "agent": choice}, headers=bob).json()["path"]
        confused = requests.delete(f"{router.url}{other}/wsconnect/{uid}", headers=bob, timeout=30)
        assert confused.status_code == 404, "the bridge of another job"

        end.send("still open")
        assert end.recv(timeout=10) == "still open"
        assert requests.delete(f"{router.url}/tokens/{made['ann']['id']}", headers=root, timeout=30).status_code == 204
        with pytest.raises(ConnectionClosed):
            end.recv(timeout=10)
        wait_until(lambda: router.get(f"{job}/wsconnect", headers=root).json() == {"bridges": []})


def check_fields(fields: list[list[str]]) -> None:
    """Fields of a handshake as the job got them."""
    found = {name.lower(): value for name, value in fields}
    assert found["cookie"] == "mine=1"
    assert "s3cret" not in str(fields)
    assert "authorization" not in found
    assert found["x-prouter-user"] == "ann"
    claims = jwt.decode(found["x-prouter-assertion"], options={"verify_signature": False})
    assert (claims["sub"], claims["role"]) == ("ann", "user")
