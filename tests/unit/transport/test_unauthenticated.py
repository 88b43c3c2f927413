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


def test_who_is_silent_makes_room_when_others_wait_and_who_goes_on_does_not() -> None:
    unauthenticated = Unauthenticated[int](4)
    for port in range(4):
        unauthenticated.opened(port, 100.0)
    assert unauthenticated.full
    unauthenticated.heard(0, 101.0)
    unauthenticated.heard(77, 101.0)
    assert unauthenticated.take_due(101.9) == []
    assert unauthenticated.take_due(102.1) == [1], "one is enough"
    assert unauthenticated.take_due(109.0) == [], "nobody waits"
    assert (unauthenticated.cut, len(unauthenticated)) == (1, 3)


def test_who_was_not_heard_although_it_spoke_gets_more_time() -> None:
    unauthenticated = Unauthenticated[int](2)
    for port in range(2):
        unauthenticated.opened(port, 100.0)
    assert unauthenticated.take_due(103.0, lambda port: port == 0) == [1]
    assert unauthenticated.take_due(104.9, lambda _: False) == []
    assert unauthenticated.take_due(110.5, lambda _: True) == []
    assert unauthenticated.take_due(112.0, lambda _: True) == []
    assert unauthenticated.take_due(112.6, lambda _: False) == [0]


def test_who_is_heard_and_takes_too_long_has_to_go_whatever_it_says() -> None:
    unauthenticated = Unauthenticated[int]()
    unauthenticated.opened(0, 100.0)
    for second in range(101, 110):
        unauthenticated.heard(0, float(second))
    assert unauthenticated.take_due(110.1, lambda _: True) == [0]


def test_not_all_are_closed_at_once() -> None:
    unauthenticated = Unauthenticated[int]()
    for port in range(300):
        unauthenticated.opened(port, 100.0)
    assert unauthenticated.take_due(200.0) == list(range(200))
    assert unauthenticated.take_due(200.0) == list(range(200, 300))


def test_each_has_the_longer_the_more_were_there_before_it() -> None:
    unauthenticated = Unauthenticated[int]()
    for port in range(1000):
        unauthenticated.opened(port, 100.0)
    unauthenticated.gone(1000)
    assert unauthenticated.take_due(110.3) == list(range(150)), "a second more for each 500"
    unauthenticated.gone(150)
    assert unauthenticated.take_due(110.3) == []
