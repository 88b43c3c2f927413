"""An agent's reaction to a router's events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from prouter.agent.links.router_link import SERVER, RouterLink
from prouter.errors import ProtocolError


class Host:
    """An agent that only says who it is."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []

    def hello(self) -> dict[str, Any]:
        return {"process": "p"}

    def router_keys(self, link: RouterLink, keys: Sequence[str]) -> None:
        self.told.append(tuple(keys))


@pytest.fixture
def link() -> RouterLink:
    return RouterLink(Host(), SERVER, "router:1", "c" * 32, 30.0)  # type: ignore[arg-type]


def test_workers_come_and_go(link: RouterLink) -> None:
    link.on_event(link.peer, "workers", {"workers": ["w1", "w2"]})
    link.on_event(link.peer, "worker.up", {"worker": "w3"})
    link.on_event(link.peer, "worker.down", {"worker": "w1"})
    assert set(link.peer.muxes) == {b"w2", b"w3"}


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("workers", {"workers": 5}),
        ("workers", {"workers": "w1"}),
        ("workers", {"workers": ["w1", None]}),
        ("workers", {"workers": ["w" * 65]}),
        ("worker.up", {}),
        ("worker.up", {"worker": 7}),
        ("worker.up", {"worker": ""}),
        ("worker.down", {"worker": ["w1"]}),
    ],
)
def test_odd_news_of_workers_is_malformed_and_changes_nothing(
    link: RouterLink, name: str, body: dict[str, Any]
) -> None:
    link.on_event(link.peer, "workers", {"workers": ["w1"]})
    with pytest.raises(ProtocolError):
        link.on_event(link.peer, name, body)
    assert set(link.peer.muxes) == {b"w1"}


def test_the_next_key_of_a_router_is_known_before_it_is_used() -> None:
    host = Host()
    link = RouterLink(host, SERVER, "router:1", "c" * 32, 30.0, ("first",))  # type: ignore[arg-type]
    link.on_event(link.peer, "keys", {"keys": ["first", "second"]})
    assert link.keys == ("first", "second")
    assert host.told == [("first", "second")]


def test_keys_that_come_unencrypted_are_not_believed() -> None:
    host = Host()
    link = RouterLink(host, SERVER, "router:1", "c" * 32, 30.0)  # type: ignore[arg-type]
    link.on_event(link.peer, "keys", {"keys": ["first"]})
    assert link.keys == ()
    assert host.told == [()]


@pytest.mark.parametrize("told", [None, "first", {"a": 1}, []])
def test_an_odd_list_of_keys_changes_nothing(told: object) -> None:
    link = RouterLink(Host(), SERVER, "router:1", "c" * 32, 30.0, ("first",))  # type: ignore[arg-type]
    link.on_event(link.peer, "keys", {"keys": told})
    assert link.keys == ("first",)


def test_each_attempt_tries_the_next_key_and_a_lost_link_the_same_again() -> None:
    class Quiet(Host):
        """An agent that does not mind failures, and has no jobs."""

        def link_failed(self, link: RouterLink, reason: str, *, refused: bool) -> None: ...

        def link_up(self, link: RouterLink) -> None: ...

        def link_down(self, link: RouterLink, reason: str) -> None: ...

        def records(self) -> list[Any]:
            return []

    link = RouterLink(Quiet(), SERVER, "router:1", "c" * 32, 30.0, ("first", "second"))  # type: ignore[arg-type]
    assert link.key == "first"
    link.on_lost(link.peer, "the handshake failed")
    assert link.key == "second"
    link.on_ready(link.peer, {"keys": ["second", "third"]})
    assert link.key == "second"
    link.on_lost(link.peer, "connection closed")
    assert link.key == "second"
