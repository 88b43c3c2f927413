"""Countable resources."""

from __future__ import annotations

import pytest

from prouter.resources import add, check_amounts, fits, lacking, machine, read_amounts, take


def test_fits_counts_what_is_used() -> None:
    assert fits({"gpus": 1}, {"gpus": 2}, {"gpus": 1})
    assert not fits({"gpus": 2}, {"gpus": 2}, {"gpus": 1})
    assert lacking({"gpus": 1, "cpus": 1}, {"cpus": 1}, {}) == ["gpus"]
    assert fits({}, {}, {})


def test_tenths_fill_an_agent_exactly() -> None:
    used: dict[str, float] = {}
    for _ in range(10):
        assert fits({"cpus": 0.1}, {"cpus": 1}, used)
        add(used, {"cpus": 0.1})
    assert not fits({"cpus": 0.1}, {"cpus": 1}, used)
    for _ in range(10):
        take(used, {"cpus": 0.1})
    assert used == {}


@pytest.mark.parametrize("amounts", [{"g p": 1}, {"gpus": -1}, {"gpus": float("nan")}, {"gpus": True}, {"": 1}])
def test_odd_amounts_are_refused_here_and_left_out_of_what_others_tell(amounts: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must be a number|begins with a letter"):
        check_amounts(amounts)
    assert read_amounts({**amounts, "cpus": 2}) == {"cpus": 2}


def test_the_machine_has_processors_and_memory() -> None:
    assert machine()["cpus"] >= 1
    assert machine()["memory"] > 1_000_000
