"""The list of connections that a worker keeps while nobody has been told of anything newer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import falcon.testing
import gevent
import pytest

from prouter.config.directories import connections_version
from prouter.process.shared_version import VersionFile
from prouter.web.admin.app import create_app
from tests.support.api_stand import StandInRouter


class Broker:
    """Answers each call with another list, of the version that is current at that time."""

    def __init__(self, router: StandInRouter) -> None:
        self._router = router
        self.open()
        router.answers["connections"] = self._answer

    def open(self) -> None:
        """Take over the file, or make another one."""
        self.file = VersionFile(connections_version(self._router.config))

    @property
    def calls(self) -> int:
        return len(self._router.calls)

    def _answer(self, args: dict[str, Any]) -> dict[str, Any]:
        listed = b'{"connections":[{"uid":"c%d"}]}' % self.calls
        return {"connections": listed, "etag": str(self.calls), "version": self.file.version}


@pytest.fixture
def router(tmp_path: Path) -> Iterator[StandInRouter]:
    with gevent.Timeout(10):
        router = StandInRouter()
        state = router.config.state.model_copy(update={"run_dir": str(tmp_path)})
        router.config = router.config.model_copy(update={"state": state})
        yield router


@pytest.fixture
def broker(router: StandInRouter) -> Iterator[Broker]:
    broker = Broker(router)
    yield broker
    broker.file.close()


@pytest.fixture
def client(router: StandInRouter) -> falcon.testing.TestClient:
    return falcon.testing.TestClient(create_app(router, router.config, router.gate))  # type: ignore[arg-type]


def shown(client: falcon.testing.TestClient) -> str:
    """The one connection that is listed, by itself as well."""
    (entry,) = client.simulate_get("/connections").json["connections"]
    assert client.simulate_get(f"/connections/{entry['uid']}").json == entry
    return str(entry["uid"])


def test_the_list_of_the_current_version_needs_no_call(client: falcon.testing.TestClient, broker: Broker) -> None:
    assert (shown(client), shown(client), broker.calls) == ("c1", "c1", 1)
    broker.file.increment()
    assert (shown(client), shown(client), broker.calls) == ("c2", "c2", 2)


def test_without_the_broker_no_list_is_current(
    client: falcon.testing.TestClient, router: StandInRouter, broker: Broker
) -> None:
    assert shown(client) == "c1"
    router.ready = False
    client.simulate_get("/connections")
    assert broker.calls == 2


def test_a_list_is_not_kept_when_the_file_of_its_version_was_replaced(
    client: falcon.testing.TestClient, router: StandInRouter, broker: Broker
) -> None:
    assert shown(client) == "c1"
    connections_version(router.config).unlink()
    broker.open()
    assert (shown(client), broker.calls) == ("c2", 2)


def test_a_version_that_was_raised_while_the_list_was_on_its_way_is_asked_for(
    client: falcon.testing.TestClient, router: StandInRouter, broker: Broker
) -> None:
    answer = router.answers["connections"]

    def overtaken(args: dict[str, Any]) -> dict[str, Any]:
        reply: dict[str, Any] = answer(args)
        broker.file.increment()
        router.answers["connections"] = answer
        return reply

    router.answers["connections"] = overtaken
    client.simulate_get("/connections")
    assert (shown(client), broker.calls) == ("c2", 2)
