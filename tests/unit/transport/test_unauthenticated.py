"""Unauthenticated connections are closed in time, and when there are too many."""

from __future__ import annotations

from prouter.transport.unauthenticated import Unauthenticated


def test_who_is_not_accepted_in_time_has_to_go() -> None:
    unauthenticated, port = Unauthenticated[object](), object()
    unauthenticated.opened(port, 100.0)
    assert unauthenticated.take_due(109.0) == []
    assert unauthenticated.take_due(111.0) == [port]
    assert (unauthenticated.cut, len(unauthenticated)) == (1, 0)


def test_who_is_accepted_stays() -> None:
    unauthenticated, port = Unauthenticated[object](), object()
    unauthenticated.opened(port, 100.0)
    unauthenticated.gone(port)
    assert not unauthenticated.due(200.0)
    assert unauthenticated.take_due(200.0) == []


def test_the_oldest_of_too_many_go_before_their_time() -> None:
    unauthenticated = Unauthenticated[object]()
    ports = [object() for _ in range(1274)]
    for port in ports:
        unauthenticated.opened(port, 100.0)
    assert unauthenticated.due(100.0)
    assert unauthenticated.take_due(100.0) == ports[:200]
    assert unauthenticated.take_due(100.0) == ports[200:250]
    assert (unauthenticated.cut, len(unauthenticated)) == (250, 1024)


def test_each_has_the_longer_the_more_were_there_before_it() -> None:
    unauthenticated = Unauthenticated[int]()
    for port in range(2000):
        unauthenticated.opened(port, 100.0)
    assert unauthenticated.take_due(110.5) == list(range(200))
    assert len(unauthenticated.take_due(110.5)) == 50, "the last of those whose time was over by then"
    unauthenticated.gone(250)
    assert unauthenticated.take_due(110.5) == []


def test_there_may_be_more_while_known_peers_are_expected_back() -> None:
    unauthenticated, expected = Unauthenticated[int](10), 5
    unauthenticated.expected = lambda: expected
    for port in range(15):
        unauthenticated.opened(port, 100.0)
    assert unauthenticated.take_due(100.0) == []
    expected = 0
    assert unauthenticated.take_due(100.0) == [0, 1, 2, 3, 4]
