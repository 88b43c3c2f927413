"""Conditions and amounts on the command line."""

from __future__ import annotations

import click
import pytest

from prouter.cli.remote.wanted import conditions, resources


def test_conditions() -> None:
    assert conditions(["gpus>=2", "gpus<=8", "zone in a, b", "cuda=true", "model=a100"]) == {
        "gpus": {">=": 2, "<=": 8},
        "zone": {"in": ["a", "b"]},
        "cuda": True,
        "model": "a100",
    }


def test_resources() -> None:
    assert resources(["cpus=0.5", "memory=2G", "matlab=1"]) == {"cpus": 0.5, "memory": 2 * 1024**3, "matlab": 1}


@pytest.mark.parametrize("item", ["gpus", "gpus>=many", ">=2"])
def test_odd_conditions(item: str) -> None:
    with pytest.raises(click.BadParameter):
        conditions([item])


@pytest.mark.parametrize("item", ["gpus", "gpus=many", "=2", "gpus=-1"])
def test_odd_resources(item: str) -> None:
    with pytest.raises(click.BadParameter):
        resources([item])
