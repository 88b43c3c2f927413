"""Byte ranges and preconditions by RFC 9110."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.errors import RangeNotSatisfiable
from prouter.web.admin.errors import PreconditionFailed
from prouter.web.admin.files.ranges import MAX_RANGES, Validators, byte_ranges, etag_in

FILE = Validators('"v1"', 1_500_000_000_700_000_000)
DATE = "Fri, 14 Jul 2017 02:40:00 GMT"
BEFORE = "Fri, 14 Jul 2017 02:39:59 GMT"


@pytest.mark.parametrize(
    ("header", "ranges"),
    [
        ("bytes=0-0", [(0, 1)]),
        ("bytes=0-", [(0, 10)]),
        ("bytes=9-", [(9, 10)]),
        ("bytes=3-99", [(3, 10)]),
        ("bytes=-3", [(7, 10)]),
        ("bytes=-99", [(0, 10)]),
        ("BYTES = 1-2", [(1, 3)]),
        ("bytes=0-1, 4-5", [(0, 2), (4, 6)]),
        ("bytes=4-5,0-1", [(4, 6), (0, 2)]),
        ("bytes=0-3,2-5", [(0, 6)]),
        ("bytes=0-1,2-3", [(0, 4)]),
        ("bytes=0-1,5-6,1-5", [(0, 7)]),
        ("bytes=0-1,20-30", [(0, 2)]),
        ("bytes=,0-1,,4-5,", [(0, 2), (4, 6)]),
        ("bytes=2-1", None),
        ("bytes=,", None),
        ("bytes=-", None),
        ("bytes=", None),
        ("bytes=a-b", None),
        ("bytes=1-2-3", None),
        ("bytes=-0,1-2", [(1, 3)]),
        ("lines=1-2", None),
        ("1-2", None),
        ("bytes=" + ",".join(["0-0"] * (MAX_RANGES + 1)), None),
    ],
)
def test_ranges(header: str, ranges: list[tuple[int, int]] | None) -> None:
    assert byte_ranges(header, 10) == ranges


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-20,30-", "bytes=-0", "bytes=99999999999999999999-"])
def test_ranges_outside_are_not_satisfiable(header: str) -> None:
    with pytest.raises(RangeNotSatisfiable):
        byte_ranges(header, 10)


def test_an_empty_file_has_no_range() -> None:
    for header in ("bytes=0-", "bytes=-0", "bytes=0-0,-0"):
        with pytest.raises(RangeNotSatisfiable):
            byte_ranges(header, 0)


def test_a_suffix_of_an_empty_file_is_all_of_it() -> None:
    assert byte_ranges("bytes=-5", 0) is None


@given(
    st.integers(1, 50),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=6),
)
def test_joined_ranges_cover_just_what_was_asked(size: int, asked: list[tuple[int, int]]) -> None:
    specs = [(min(pair), max(pair)) for pair in asked]
    wanted = {byte for first, last in specs for byte in range(first, last + 1) if byte < size}
    header = "bytes=" + ",".join(f"{first}-{last}" for first, last in specs)
    if not wanted:
        with pytest.raises(RangeNotSatisfiable):
            byte_ranges(header, size)
        return
    ranges = byte_ranges(header, size)
    assert ranges is not None
    covered = [byte for start, stop in ranges for byte in range(start, stop)]
    assert len(covered) == len(set(covered))
    assert set(covered) == wanted


def test_etags_are_compared_strongly_or_weakly() -> None:
    assert etag_in('"a", "b"', '"b"', weak=False)
    assert etag_in('W/"b"', '"b"', weak=True)
    assert not etag_in('W/"b"', '"b"', weak=False)
    assert not etag_in('"bb"', '"b"', weak=True)
    assert etag_in(" * ", '"b"', weak=False)
    assert not etag_in("nonsense", '"b"', weak=True)


@pytest.mark.parametrize(
    ("headers", "unchanged"),
    [
        ({}, False),
        ({"IF-NONE-MATCH": '"v1"'}, True),
        ({"IF-NONE-MATCH": '"v0"'}, False),
        ({"IF-NONE-MATCH": '"v0"', "IF-MODIFIED-SINCE": DATE}, False),
        ({"IF-MODIFIED-SINCE": DATE}, True),
        ({"IF-MODIFIED-SINCE": BEFORE}, False),
        ({"IF-MODIFIED-SINCE": "yesterday"}, False),
        ({"IF-MATCH": '"v1"'}, False),
        ({"IF-MATCH": '"v1"', "IF-UNMODIFIED-SINCE": BEFORE}, False),
        ({"IF-UNMODIFIED-SINCE": DATE}, False),
    ],
)
def test_preconditions(headers: dict[str, str], unchanged: bool) -> None:
    assert FILE.not_modified(headers) is unchanged


@pytest.mark.parametrize("headers", [{"IF-MATCH": '"v0"'}, {"IF-UNMODIFIED-SINCE": BEFORE}])
def test_preconditions_that_fail(headers: dict[str, str]) -> None:
    with pytest.raises(PreconditionFailed):
        FILE.not_modified(headers)


def test_if_range_needs_the_very_same_file() -> None:
    assert FILE.range_applies(None)
    assert FILE.range_applies('"v1"')
    assert not FILE.range_applies('W/"v1"')
    assert FILE.range_applies(DATE)
    assert not FILE.range_applies(BEFORE)
    assert not FILE.range_applies("yesterday")


def test_last_modified_is_never_in_the_future() -> None:
    assert FILE.last_modified == DATE
    assert "2100" not in Validators('"x"', 4_102_444_800 * 10**9).last_modified
