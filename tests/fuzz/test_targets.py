"""The targets of ``make fuzz``, each for a moment and with the same cases every time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import pytest

from tests.fuzz.__main__ import run
from tests.fuzz.targets import TARGETS, Case

CASES = {"broker": 150, "curve": 30, "archives": 20}


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "documented"])  # test_documented.py
def test_random_input_is_refused_or_understood(name: str) -> None:
    with TARGETS[name]() as case:
        for seed in range(CASES.get(name, 2000)):
            try:
                case(Random(seed))
            except Exception as error:
                raise AssertionError(f'make fuzz ARGS="--seed {seed} --seconds 0 {name}"') from error


def test_a_failure_is_told_with_the_command_that_repeats_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def odd() -> Iterator[Case]:
        def case(random: Random) -> None:
            assert random.random() == Random(8).random()

        yield case

    monkeypatch.setitem(TARGETS, "odd", odd)
    assert run("odd", 8, 0) == (1, [])
    assert run("odd", 9, 0) == (1, [9])
    assert 'make fuzz ARGS="--seed 9 --seconds 0 odd"' in capsys.readouterr().out
