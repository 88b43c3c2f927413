"""Flows of the router itself: who it is, its agents and its tokens."""

from __future__ import annotations

from typing import Any

from prouter.client.core.flow import Flow, Request
from prouter.client.core.models import Connection, RouterInfo, Token, WhoAmI
from prouter.client.core.paths import segment
from prouter.client.core.requests import make_once, post
from prouter.client.core.retries import Context, call, call_json

__all__ = [
    "connections",
    "create_token",
    "drain",
    "revoke_token",
    "router_info",
    "shutdown",
    "tokens",
    "who_am_i",
]


def router_info(context: Context) -> Flow[RouterInfo]:
    """Return who the router is."""
    return RouterInfo.of((yield from call_json(context, Request("GET", "/info"))))


def connections(context: Context) -> Flow[list[Connection]]:
    """Return the agents that the router is connected with."""
    answer = yield from call_json(context, Request("GET", "/connections"))
    return [Connection.of(one) for one in answer.get("connections", [])]


def drain(context: Context, agent: str, *, resume: bool = False) -> Flow[None]:
    """Have an agent take no new jobs, or take them again.

    Args:
        agent: uid of the agent, or of its connection.

    Raises:
        NotFound: no such agent is connected.
    """
    verb = "resume" if resume else "drain"
    known = yield from connections(context)
    found = [one.uid for one in known if agent in (one.uid, one.agent.uid)]
    for connection in found or [agent]:
        yield from call(context, post(f"/connections/{segment(connection)}/{verb}"))


def shutdown(context: Context) -> Flow[None]:
    """Have the router drain and exit."""
    yield from call(context, post("/shutdown"), safe=False)


def who_am_i(context: Context) -> Flow[WhoAmI]:
    """Return whom the router takes this client for."""
    return WhoAmI.of((yield from call_json(context, Request("GET", "/whoami"))))


def tokens(context: Context) -> Flow[list[Token]]:
    """Return all access tokens, without their texts."""
    answer = yield from call_json(context, Request("GET", "/tokens"))
    return [Token.of(one) for one in answer.get("tokens", [])]


def create_token(context: Context, name: str, role: str, expires: float | None) -> Flow[Token]:
    """Make an access token; exactly one.

    The router shows a token's text once. If that answer was lost, the token is revoked and another one is made.
    """
    body: dict[str, Any] = {"name": name, "role": role, "expires": expires}
    return Token.of((yield from make_once(context, "/tokens", body)))


def revoke_token(context: Context, identifier: str) -> Flow[None]:
    """Revoke a token; when this returns, the router refuses it."""
    yield from call(context, Request("DELETE", f"/tokens/{segment(identifier)}"), gone=True)
