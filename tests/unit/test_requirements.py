"""Requirements on the properties of agents."""

from __future__ import annotations

from typing import Any

import pytest

from prouter.requirements import check_require, in_words, meets

AGENT = {"gpus": 2, "zone": "a", "cuda": True, "tags": ["ssd", "big"], "speed": 2.5}


@pytest.mark.parametrize(
    ("require", "met"),
    [
        ({}, True),
        ({"gpus": 2, "cuda": True}, True),
        ({"gpus": {">=": 2}}, True),
        ({"gpus": {">": 2}}, False),
        ({"gpus": {">=": 1, "<": 3}}, True),
        ({"gpus": ">=2"}, True),
        ({"gpus": ">= 3"}, False),
        ({"speed": {"<=": 2.5}}, True),
        ({"zone": {"in": ["a", "b"]}}, True),
        ({"zone": {"in": ["b"]}}, False),
        ({"tags": {"in": ["big", "small"]}}, True),
        ({"tags": {"in": ["small"]}}, False),
        ({"zone": {">=": 1}}, False),
        ({"cuda": {">=": 1}}, False),
        ({"cuda": 1}, False),
        ({"missing": {">=": 0}}, False),
        ({"zone": "b"}, False),
    ],
)
def test_operators(require: dict[str, Any], met: bool) -> None:
    assert meets(AGENT, check_require(require)) is met


@pytest.mark.parametrize("wanted", [{"=>": 2}, {">=": "2"}, {"in": "ab"}, {"in": []}, {}, {">=": True}])
def test_odd_operators_are_refused(wanted: Any) -> None:
    with pytest.raises(ValueError, match="gpus: "):
        check_require({"gpus": wanted})


def test_in_words() -> None:
    assert in_words({"gpus": {">=": 2}, "zone": "a"}) == "gpus >= 2, zone = 'a'"
