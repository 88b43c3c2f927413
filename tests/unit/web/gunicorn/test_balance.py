"""Workers leave connections to those with fewer, but never for long."""

from __future__ import annotations

from prouter.web.gunicorn.balance import Balance


def test_a_worker_with_more_connections_steps_back_and_then_takes_it_after_all() -> None:
    busy, idle = Balance(1), Balance(2)
    idle.beat(100.0, 0)
    assert [busy.step_back(100.0, 10) for _ in range(4)] == [True, True, True, False]
    assert not idle.step_back(100.0, 0)
    busy.leave()
    idle.leave()


def test_workers_that_left_or_fell_silent_do_not_count() -> None:
    busy, other = Balance(3), Balance(4)
    other.beat(100.0, 0)
    assert busy.step_back(100.0, 10)
    assert not busy.step_back(104.0, 10)
    other.beat(104.0, 0)
    assert busy.step_back(104.0, 10)
    other.leave()
    assert not busy.step_back(104.0, 10)
    busy.leave()


def test_an_even_share_is_taken_at_once() -> None:
    one, two = Balance(5), Balance(6)
    two.beat(100.0, 9)
    assert not one.step_back(100.0, 10)
    one.leave()
    two.leave()
