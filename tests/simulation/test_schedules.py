"""Ten thousand random schedules. A failing one names the command that runs it again.

They are in classes, because all tests of a class run in one process, and several processes share the work.
"""

from __future__ import annotations

import pytest

from tests.simulation.schedule import run

_PART = 250
_PARTS = pytest.mark.parametrize("part", range(10))


def _live(first: int) -> None:
    for seed in range(first, first + _PART):
        try:
            run(seed)
        except Exception as error:
            pytest.fail(f"seed {seed}: {error!r}; see: python -m tests.simulation --seed {seed} --trace")


class TestFirstQuarter:
    @_PARTS
    def test_every_promise_is_kept(self, part: int) -> None:
        _live(part * _PART)


class TestSecondQuarter:
    @_PARTS
    def test_every_promise_is_kept(self, part: int) -> None:
        _live(2500 + part * _PART)


class TestThirdQuarter:
    @_PARTS
    def test_every_promise_is_kept(self, part: int) -> None:
        _live(5000 + part * _PART)


class TestFourthQuarter:
    @_PARTS
    def test_every_promise_is_kept(self, part: int) -> None:
        _live(7500 + part * _PART)
