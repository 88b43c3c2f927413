"""Which arguments of ``cp`` name a file of a job."""

from __future__ import annotations

import pytest

from prouter.cli.moving.transfers import Place, place_of


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("web:a/b", Place("web", "a/b")),
        ("web:", Place("web", "")),
        ("./web:a", Place(None, "./web:a")),
        ("dir/x:y", Place(None, "dir/x:y")),
        ("-", Place(None, "-")),
        (":x", Place(None, ":x")),
    ],
)
def test_places(text: str, place: Place) -> None:
    assert place_of(text) == place
