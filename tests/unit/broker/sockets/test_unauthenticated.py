"""Connections whose peers are not accepted have to go."""

from __future__ import annotations

from prouter.broker.sockets.ports import Port
from prouter.broker.sockets.unauthenticated import Strangers


def test_who_is_not_accepted_in_time_has_to_go() -> None:
    strangers, port = Strangers(), Port([])
    strangers.opened(port, 100.0)
    assert strangers.take_due(109.0) == []
    assert strangers.take_due(111.0) == [port]
    assert (strangers.cut, len(strangers)) == (1, 0)


def test_who_is_accepted_stays() -> None:
    strangers, port = Strangers(), Port([])
    strangers.opened(port, 100.0)
    strangers.gone(port)
    assert not strangers.due(200.0)
    assert strangers.take_due(200.0) == []


def test_the_oldest_of_too_many_go_before_their_time() -> None:
    strangers = Strangers()
    ports = [Port([]) for _ in range(4346)]
    for port in ports:
        strangers.opened(port, 100.0)
    assert strangers.due(100.0)
    assert strangers.take_due(100.0) == ports[:200]
    assert strangers.take_due(100.0) == ports[200:250]
    assert (strangers.cut, len(strangers)) == (250, 4096)
