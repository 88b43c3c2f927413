"""Conditional requests by RFC 9110: dates, entity tags, and what holds in which order."""

from __future__ import annotations

import time
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.conditions import ANY, Conditions, entity_tags, http_date, matches
from prouter.errors import InvalidRequest, PreconditionFailed
from prouter.web.admin.files.ranges import Validators

NOON = 784111777
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
BEFORE = "Sun, 06 Nov 1994 08:49:36 GMT"
HALF = "Sunday, 06-Nov-94 08:49:37 GMT"
OLD = "Sun Nov  6 08:49:37 1994"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (DATE, NOON),
        (HALF, NOON),
        (OLD, NOON),
        (f" {DATE} ", NOON),
        ("Sun Nov 16 08:49:37 1994", NOON + 10 * 86400),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Sat, 31 Dec 2016 23:59:60 GMT", 1483228800),
        ("", None),
        ("yesterday", None),
        ("784111777", None),
        ("Sun, 06 Nov 1994 08:49:37", None),
        ("Sun, 06 Nov 1994 08:49:37 UTC", None),
        ("Sun, 06 Nov 1994 08:49:37 +0000", None),
        ("Sun, 6 Nov 1994 08:49:37 GMT", None),
        ("Sun, 31 Feb 1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 1994 25:49:37 GMT", None),
        ("Sun, 06 Nov 0000 08:49:37 GMT", None),
        ("sun, 06 nov 1994 08:49:37 gmt", None),
        ("1994-11-06T08:49:37Z", None),
        (f"{DATE}, {DATE}", None),
    ],
)
def test_dates_in_all_three_formats_and_no_others(text: str, seconds: int | None) -> None:
    assert http_date(text) == seconds


def test_a_year_of_two_digits_is_never_more_than_fifty_years_ahead() -> None:
    now = datetime.now(timezone.utc).year
    for year in range(100):
        seconds = http_date(f"Sunday, 06-Nov-{year:02d} 08:49:37 GMT")
        assert seconds is not None
        found = datetime.fromtimestamp(seconds, timezone.utc).year
        assert found % 100 == year
        assert now - 50 <= found <= now + 50


@given(st.integers(0, 2**32))
def test_every_second_comes_back_in_each_format(seconds: int) -> None:
    when = datetime.fromtimestamp(seconds, timezone.utc)
    assert http_date(when.strftime("%a, %d %b %Y %H:%M:%S GMT")) == seconds
    assert http_date(when.strftime("%a %b %e %H:%M:%S %Y")) == seconds


@pytest.mark.parametrize(
    ("field", "tags"),
    [
        ("*", ANY),
        (" * ", ANY),
        ('"a"', ('"a"',)),
        ('"a", W/"b" ,"c,d"', ('"a"', 'W/"b"', '"c,d"')),
        (', "a",, "b",', ('"a"', '"b"')),
        ('""', ('""',)),
        ('"*"', ('"*"',)),
        ('"é"', ('"é"',)),
        ("", None),
        (", ,", None),
        ("a", None),
        ('"a', None),
        ('"a" "b"', None),
        ('w/"a"', None),
        ('W/ "a"', None),
        ('"a", b', None),
        ('*, "a"', None),
        ('"a b"', None),
        ('x"a"', None),
    ],
)
def test_lists_of_entity_tags(field: str, tags: tuple[str, ...] | None) -> None:
    assert entity_tags(field) == tags


@pytest.mark.parametrize("field", [", " * 30000 + "x", '"a", ' * 10000 + "x", '"a"' + " " * 60000 + "x", "W/" * 30000])
def test_a_long_list_takes_no_time(field: str) -> None:
    began = time.process_time()
    assert entity_tags(field) is None
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("one", "other", "strong", "weak"),
    [
        ('W/"1"', 'W/"1"', False, True),
        ('W/"1"', 'W/"2"', False, False),
        ('W/"1"', '"1"', False, True),
        ('"1"', '"1"', True, True),
    ],
)
def test_comparison_as_in_the_table_of_section_8_8_3_2(one: str, other: str, strong: bool, weak: bool) -> None:
    for first, second in ((one, other), (other, one)):
        assert matches((first,), second, weak=False) is strong
        assert matches((first,), second, weak=True) is weak


OK, FAILS, UNCHANGED = 200, 412, 304
TABLE = [
    ({}, OK, OK, OK),
    ({"IF-MATCH": "*"}, OK, OK, FAILS),
    ({"IF-MATCH": '"v1"'}, OK, OK, FAILS),
    ({"IF-MATCH": '"v0", "v1"'}, OK, OK, FAILS),
    ({"IF-MATCH": '"v0"'}, FAILS, FAILS, FAILS),
    ({"IF-MATCH": 'W/"v1"'}, FAILS, FAILS, FAILS),
    ({"IF-MATCH": "v1"}, FAILS, FAILS, FAILS),
    ({"IF-MATCH": ""}, FAILS, FAILS, FAILS),
    ({"IF-NONE-MATCH": "*"}, UNCHANGED, FAILS, OK),
    ({"IF-NONE-MATCH": '"v1"'}, UNCHANGED, FAILS, OK),
    ({"IF-NONE-MATCH": 'W/"v1"'}, UNCHANGED, FAILS, OK),
    ({"IF-NONE-MATCH": '"v0", W/"v1"'}, UNCHANGED, FAILS, OK),
    ({"IF-NONE-MATCH": '"v0"'}, OK, OK, OK),
    ({"IF-UNMODIFIED-SINCE": DATE}, OK, OK, OK),
    ({"IF-UNMODIFIED-SINCE": HALF}, OK, OK, OK),
    ({"IF-UNMODIFIED-SINCE": BEFORE}, FAILS, FAILS, OK),
    ({"IF-UNMODIFIED-SINCE": "nonsense"}, OK, OK, OK),
    ({"IF-MODIFIED-SINCE": DATE}, UNCHANGED, OK, OK),
    ({"IF-MODIFIED-SINCE": OLD}, UNCHANGED, OK, OK),
    ({"IF-MODIFIED-SINCE": BEFORE}, OK, OK, OK),
    ({"IF-MODIFIED-SINCE": "nonsense"}, OK, OK, OK),
    # Which of two fields counts (section 13.2.2):
    ({"IF-MATCH": '"v1"', "IF-UNMODIFIED-SINCE": BEFORE}, OK, OK, FAILS),
    ({"IF-MATCH": '"v0"', "IF-UNMODIFIED-SINCE": DATE}, FAILS, FAILS, FAILS),
    ({"IF-NONE-MATCH": '"v0"', "IF-MODIFIED-SINCE": DATE}, OK, OK, OK),
    ({"IF-NONE-MATCH": '"v1"', "IF-MODIFIED-SINCE": BEFORE}, UNCHANGED, FAILS, OK),
    ({"IF-MATCH": '"v1"', "IF-NONE-MATCH": '"v1"'}, UNCHANGED, FAILS, FAILS),
    ({"IF-MATCH": '"v0"', "IF-NONE-MATCH": '"v1"'}, FAILS, FAILS, FAILS),
    ({"IF-MATCH": '"v1"', "IF-NONE-MATCH": '"v0"', "IF-MODIFIED-SINCE": DATE}, OK, OK, FAILS),
    ({"IF-UNMODIFIED-SINCE": BEFORE, "IF-NONE-MATCH": '"v1"'}, FAILS, FAILS, OK),
    ({"IF-UNMODIFIED-SINCE": DATE, "IF-NONE-MATCH": '"v1"'}, UNCHANGED, FAILS, OK),
]


@pytest.mark.parametrize(("headers", "read", "write", "_create"), TABLE)
def test_precedence_for_reading(headers: dict[str, str], read: int, write: int, _create: int) -> None:
    file = Validators('"v1"', NOON * 10**9 + 5)
    try:
        assert (UNCHANGED if file.not_modified(headers) else OK) == read
    except PreconditionFailed:
        assert read == FAILS


@pytest.mark.parametrize(("headers", "_read", "write", "create"), TABLE)
def test_precedence_for_writing(headers: dict[str, str], _read: int, write: int, create: int) -> None:
    conditions = Conditions.of(headers)
    for exists, status in ((True, write), (False, create)):
        known = {"etag": '"v1"', "mtime": NOON + 0.9} if exists else {}
        if conditions is None:
            assert status == OK
        elif status == OK:
            Conditions.from_wire(conditions.to_wire()).check(exists=exists, **known)  # type: ignore[arg-type]
        else:
            with pytest.raises(PreconditionFailed):
                conditions.check(exists=exists, **known)  # type: ignore[arg-type]


def test_what_has_no_entity_tag_matches_nothing_but_the_star() -> None:
    Conditions.of({"IF-MATCH": "*"}).check(exists=True)  # type: ignore[union-attr]
    Conditions.of({"IF-NONE-MATCH": '"a"'}).check(exists=True)  # type: ignore[union-attr]
    with pytest.raises(PreconditionFailed):
        Conditions.of({"IF-MATCH": '"a"'}).check(exists=True)  # type: ignore[union-attr]


@pytest.mark.parametrize("field", ["nonsense", "", '"a', '*, "a"'])
def test_a_malformed_if_none_match_spares_what_it_was_to_spare(field: str) -> None:
    with pytest.raises(InvalidRequest, match="If-None-Match"):
        Conditions.of({"IF-NONE-MATCH": field})


@pytest.mark.parametrize("wire", [{"match": "*"}, {"match": [1]}, {"none_match": {}}, {"unmodified_since": "now"}])
def test_conditions_that_are_none_are_refused(wire: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        Conditions.from_wire(wire)
