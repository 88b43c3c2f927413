"""An agent links over tcp, encrypted tcp and a unix socket: jobs run, and it finds a restarted router again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from prouter.keys.files import make_pair
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
    os.kill(router.child("broker"), signal.SIGKILL)
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
