"""Token buckets in shared memory, against a table that never forgets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.limits.attempts import REQUEST, SIGN_IN, Attempts
from prouter.limits.buckets import Buckets

RATES = st.sampled_from([0.5, 1.0, 7.0, 1000.0])
BURSTS = st.sampled_from([1.0, 3.0, 20.0])


class Ideal:
    """One bucket, as it is defined: tokens that flow in and are taken."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate, self.burst, self.tokens, self.at = rate, burst, burst, now

    def take(self, now: float) -> bool:
        self.tokens = min(self.burst, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens < 1 - 1e-3:
            return False
        self.tokens -= 1
        return True


@given(
    rate=RATES,
    burst=BURSTS,
    steps=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 64)), max_size=60),
)
def test_each_key_has_a_bucket_of_its_own(rate: float, burst: float, steps: list[tuple[str, int]]) -> None:
    table = Buckets(64)
    now = 1000.0
    ideals = {key: Ideal(rate, burst, now) for key in "abc"}
    for key, pause in steps:
        now += pause / 16 / rate
        wait = table.wait(key, rate, burst, now)
        assert table.take(key, rate, burst, now) == wait
        assert (wait == 0) == ideals[key].take(now)
        if wait:
            assert table.wait(key, rate, burst, now + wait + 1e-5 / rate) == 0, "the time told is the time to wait"


@given(burst=st.integers(1, 30), others=st.integers(0, 400))
def test_a_client_that_used_up_its_bucket_gets_it_back_by_no_flood_of_small_ones(burst: int, others: int) -> None:
    table = Buckets(4)
    for _ in range(burst):
        assert table.take("attacker", 1.0, burst, 0.0) == 0
    for number in range(others):
        for _ in range(max(1, burst - 1)):
            table.take(f"other {number}", 1.0, burst, 0.0)
    if burst > 1:
        assert table.take("attacker", 1.0, burst, 0.0) > 0


def test_a_new_client_is_let_in_however_many_there_are() -> None:
    table = Buckets(2)
    for number in range(1000):
        for _ in range(5):
            assert table.take(f"client {number}", 1.0, 5.0, 0.0) == 0


def test_a_bucket_that_became_smaller_counts_as_its_new_size() -> None:
    table = Buckets(1)
    for _ in range(1000):
        table.take("client", 1.0, 1000.0, 0.0)
    assert table.wait("client", 1.0, 10.0, 0.0) == 1.0


@contextmanager
def child(work: Iterator[None]) -> Iterator[None]:
    pid = os.fork()
    if not pid:
        for _ in work:
            pass
        os._exit(0)
    try:
        yield
    finally:
        os.waitpid(pid, 0)


def test_processes_share_a_table() -> None:
    table = Buckets(16)
    with child(None for _ in range(10) if table.take("client", 1.0, 10.0, 0.0) == 0):
        pass
    assert table.take("client", 1.0, 10.0, 0.0) > 0


def test_processes_that_take_at_the_same_time_lose_few_counts() -> None:
    table, burst, processes = Buckets(16), 20_000.0, 2
    before = table.wait("client", 1.0, burst, 0.0)
    assert before == 0
    pids = []
    for _ in range(processes):
        pid = os.fork()
        if not pid:
            for _ in range(int(burst)):
                table.take("client", 1.0, burst, 0.0)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    assert table.wait("client", 1.0, burst, 0.0) > 0, "together they took twice what there was"


@pytest.mark.parametrize("in_all", [0.0, 1000.0])
def test_one_address_uses_up_its_own_attempts_only(in_all: float) -> None:
    attempts = Attempts(Buckets(64), Buckets(1), 5.0, in_all)
    for _ in range(5):
        assert attempts.blocked("192.0.2.1", REQUEST) == 0
        assert attempts.failed("192.0.2.1", REQUEST) == 0
    assert 10 < attempts.failed("192.0.2.1", REQUEST) <= 12
    assert attempts.address_blocked("192.0.2.1", REQUEST)
    for _ in range(5000):
        attempts.failed("192.0.2.1", REQUEST)
    assert attempts.failed("192.0.2.2", REQUEST) == attempts.blocked("192.0.2.2", REQUEST) == 0


def test_many_addresses_together_have_a_budget() -> None:
    attempts = Attempts(Buckets(64), Buckets(1), 5.0, 20.0)
    waits = [attempts.failed(f"192.0.2.{number}", REQUEST) for number in range(30)]
    assert waits[:20] == [0.0] * 20
    assert all(waits[20:])
    assert not attempts.address_blocked("192.0.2.29", REQUEST)
    assert attempts.blocked("192.0.2.99") > 0


def test_a_failed_sign_in_counts_as_many_requests() -> None:
    attempts = Attempts(Buckets(64), Buckets(1), 10 * SIGN_IN, 15 * SIGN_IN)
    assert [attempts.failed("a") for _ in range(10)] == [0.0] * 10
    assert 0 < attempts.failed("a") <= 6
    assert attempts.failed("a", REQUEST) > 0
    assert [attempts.failed("b") for _ in range(5)] == [0.0] * 5
    assert attempts.blocked("b") > 0, "all together"
    assert Attempts(Buckets(1), Buckets(1), 1.0, 0.0).failed("c") == 0, "a budget below the cost allows one"
