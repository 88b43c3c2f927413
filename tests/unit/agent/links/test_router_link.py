"""What an agent makes of a router's events."""

from __future__ import annotations

from typing import Any

import pytest

from prouter.agent.links.router_link import SERVER, RouterLink
from prouter.errors import ProtocolError


class Host:
    """An agent that only says who it is."""

    def hello(self) -> dict[str, Any]:
        return {"process": "p"}


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
