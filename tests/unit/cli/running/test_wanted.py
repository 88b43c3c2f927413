"""Conditions and amounts on the command line."""

from __future__ import annotations

import click
import pytest

from prouter.cli.running.wanted import conditions, resources, slurm_options


def test_conditions() -> None:
    assert conditions(["gpus>=2", "gpus<=8", "zone in a, b", "cuda=true", "model=a100"]) == {
        "gpus": {">=": 2, "<=": 8},
        "zone": {"in": ["a", "b"]},
        "cuda": True,
        "model": "a100",
    }


def test_resources() -> None:
    assert resources(["cpus=0.5", "memory=2G", "matlab=1"]) == {"cpus": 0.5, "memory": 2 * 1024**3, "matlab": 1}


def test_slurm_options() -> None:
    assert slurm_options([]) == {}
    assert slurm_options(["time=30", "nodes=2", "extra=--licenses=x", "extra=--hold"]) == {
        "slurm": {"time": "30", "nodes": "2", "extra": ["--licenses=x", "--hold"]}
    }


@pytest.mark.parametrize("items", [["partition"], ["=gpu"], ["partition="], ["qos=a", "qos=b"]])
def test_odd_slurm_options(items: list[str]) -> None:
    with pytest.raises(click.BadParameter):
        slurm_options(items)


@pytest.mark.parametrize("item", ["gpus", "gpus>=many", ">=2"])
def test_odd_conditions(item: str) -> None:
    with pytest.raises(click.BadParameter):
        conditions([item])


@pytest.mark.parametrize("item", ["gpus", "gpus=many", "=2", "gpus=-1"])
def test_odd_resources(item: str) -> None:
    with pytest.raises(click.BadParameter):
        resources([item])
