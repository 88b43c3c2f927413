"""Delays between attempts to connect."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.transport.backoff import Backoff

delays = st.floats(0.001, 100.0)


def _longest(low: float, high: float) -> float:
    return high


def _shortest(low: float, high: float) -> float:
    return low


@given(delays, delays, st.integers(0, 200), st.randoms(use_true_random=False))
def test_no_delay_leaves_its_bounds(first: float, maximum: float, failures: int, chance: random.Random) -> None:
    backoff = Backoff(first, maximum, uniform=chance.uniform)
    for number in range(failures):
        delay = backoff.next()
        assert first / 4 <= delay <= min(max(first, maximum), first * 1.5**number * (1 + 1e-9))


@given(delays, delays)
def test_the_upper_bound_grows_by_half_up_to_the_maximum(first: float, maximum: float) -> None:
    backoff = Backoff(first, maximum, uniform=_longest)
    drawn = [backoff.next() for _ in range(60)]
    assert drawn[0] == first
    assert drawn[-1] == max(first, maximum)
    for shorter, longer in pairwise(drawn):
        assert longer == pytest.approx(min(1.5 * shorter, max(first, maximum)))


@given(delays, delays, st.integers(0, 200))
def test_delays_are_ten_times_shorter_after_a_link(first: float, maximum: float, failures: int) -> None:
    backoff = Backoff(first, maximum, uniform=_longest)
    for _ in range(failures):
        backoff.next()
    backoff.succeeded()
    assert backoff.next() == pytest.approx(first / 10)
    assert backoff.next() == pytest.approx(min(first * 0.15, max(first, maximum)))


def test_no_attempt_follows_at_once() -> None:
    backoff = Backoff(1.0, 8.0, uniform=_shortest)
    assert [backoff.next() for _ in range(20)] == [0.25] * 20


def test_the_whole_range_is_drawn_from() -> None:
    """Full jitter: attempts of many processes spread over the maximum, not round its end."""
    chance = random.Random(1)
    drawn = []
    for _ in range(4_000):
        backoff = Backoff(1.0, 8.0, uniform=chance.uniform)
        backoff.slow_down()
        drawn.append(backoff.next())
    for eighth in range(8):
        assert 400 < sum(eighth <= delay < eighth + 1 for delay in drawn) < 600


def test_who_is_slowed_down_waits_for_the_longest() -> None:
    backoff = Backoff(0.1, 5.0, uniform=_longest)
    backoff.slow_down()
    assert [backoff.next(), backoff.next()] == [5.0, 5.0]
    backoff.succeeded()
    assert backoff.next() == pytest.approx(0.01)


@pytest.mark.parametrize(("first", "maximum"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_a_delay_must_be_positive(first: float, maximum: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        Backoff(first, maximum)
