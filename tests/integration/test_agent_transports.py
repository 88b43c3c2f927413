"""An agent links over tcp, encrypted tcp and a unix socket: jobs run, and it finds a restarted router again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from prouter.keys.files import load_public, make_pair
from tests.support.processes import Agent, Router, link_settings, start_agent, start_router, wait_until

Launch = Callable[..., Any]


def links(router: Router) -> list[dict[str, Any]]:
    """The connections that a router shows as up."""
    found: list[dict[str, Any]] = router.get("/connections").json()["connections"]
    return [connection for connection in found if connection["up"]]


def run_echo(router: Router, agent: Agent) -> str:
    """The output of a job."""
    path = router.create(agent.uid)
    router.start(path, ["echo", "hello"], port_expected_count=0)
    assert router.post(path + "/wait").json()["exit_code"] == 0
    return router.get(path + "/logs/stdout").text


@pytest.mark.parametrize("transport", ["tcp", "ipc", "curve"])
def test_an_agent_links_and_is_back_after_the_broker_was_killed(launch: Launch, transport: str) -> None:
    router = launch(start_router, server__curve=transport == "curve", server__accept_tokens=["secret"])
    agent = launch(start_agent, router, client__token="secret", **link_settings(router, transport))
    assert run_echo(router, agent) == "hello\n"
    before = links(router)[0]["uid"]
    router.kill_broker()
    wait_until(lambda: "event=link_down" in agent.log_end(100_000), 10, "the agent notices")
    wait_until(lambda: [link["uid"] for link in links(router)] == [before], 10, "the agent is back")
    assert run_echo(router, agent) == "hello\n"


def test_one_agent_links_to_routers_over_different_transports(launch: Launch) -> None:
    near, far = launch(start_router), launch(start_router, server__curve=True)
    address = f"ipc://{near.directory}/run/agents.sock"
    agent = launch(start_agent, near, client__address=[address, far.agents], client__router_key=far.key_file)
    for router in (near, far):
        wait_until(lambda router=router: links(router), 10, "both routers have the link")  # type: ignore[misc]
        assert run_echo(router, agent) == "hello\n"


def test_a_token_is_asked_for_over_the_unix_socket_too(launch: Launch) -> None:
    router = launch(start_router, server__accept_tokens=["secret"])
    with pytest.raises(AssertionError, match="the token is not accepted"):
        launch(start_agent, router, client__exit_on_fail=True, **link_settings(router, "ipc"))


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (lambda router: {"client__router_key": make_pair().public}, "the key of the other end may be wrong"),
        (lambda router: {}, "the router wants encryption"),
    ],
)
def test_an_agent_without_the_router_s_key_is_told_so(
    launch: Launch, own: Callable[[Router], dict[str, Any]], expected: str
) -> None:
    router = launch(start_router, server__curve=True)
    with pytest.raises(AssertionError, match=expected):
        launch(start_agent, router, client__exit_on_fail=True, **own(router))
    assert not links(router)


def test_an_agent_with_a_key_does_not_link_to_a_router_that_does_not_encrypt(launch: Launch) -> None:
    router = launch(start_router)
    with pytest.raises(AssertionError, match="the router does not encrypt"):
        launch(start_agent, router, client__exit_on_fail=True, client__router_key=make_pair().public)


@pytest.mark.parametrize(("path", "expected"), [("missing.sock", "no such file"), ("router.log", "connection refused")])
def test_a_socket_that_is_none_is_named_with_the_reason(launch: Launch, path: str, expected: str) -> None:
    router = launch(start_router)
    address = f"ipc://{router.directory}/{path}"
    with pytest.raises(AssertionError, match=expected):
        launch(start_agent, router, client__exit_on_fail=True, client__address=address)


def _listening(launch: Launch, **sets: Any) -> tuple[Agent, str, str]:
    """An agent that routers dial over an encrypted connection; its address and public key file."""
    agent = launch(
        start_agent, "", client__enabled=False, server__enabled=True, server__port=0, server__curve=True, **sets
    )
    return agent, agent.ready.split("listen=tcp://")[1].split()[0], f"{agent.directory}/state/keys/agent.key"


def _create(router: Router, address: str, token: str = "") -> requests.Response:
    return router.post("/jobs/create", {"name": "x", "agent": {"type": "address", "address": address, "token": token}})


def test_an_agent_that_listens_is_dialled_by_its_key(launch: Launch) -> None:
    _, address, key = _listening(launch)
    router = launch(start_router, client__agent_keys={address: load_public(Path(key))})
    created = _create(router, address)
    assert created.status_code == 200, created.text
    assert links(router)[0]["mode"] == "CLIENT"


def test_an_agent_that_listens_does_not_link_to_a_router_that_expects_another_key(launch: Launch) -> None:
    _, address, _ = _listening(launch)
    router = launch(start_router, client__agent_keys={address: make_pair().public})
    created = _create(router, address)
    assert created.status_code == 503, created.text


def test_only_routers_of_known_keys_link_to_an_agent_that_knows_some(launch: Launch, work_dir: Path) -> None:
    known = work_dir / "known"
    known.mkdir()
    _, address, key = _listening(launch, server__accept_keys=str(known))
    router = launch(start_router, client__agent_keys={address: load_public(Path(key))})
    assert _create(router, address).status_code == 503
    shutil.copy(router.key_file, known / "router.key")
    wait_until(lambda: _create(router, address).status_code == 200, 20, "the added key counts")
