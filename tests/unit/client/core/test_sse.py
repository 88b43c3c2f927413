"""Server-sent events come out the same, however their bytes are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.client.core import sse
from prouter.client.core.sse import EventParser, ServerEvent

STREAM = (
    b'\xef\xbb\xbfretry: 2000\n\n: a comment\n\nid: 1\nevent: log\ndata: {"text":"\xc3\xbc"}\n\n'
    b"data: two\r\ndata:  lines\r\n\r\nid: 7\n\nevent: x\rdata\r\rid: a\0b\ndata: last\n\ndata: incomplete\n"
)
EVENTS = [
    ServerEvent("log", '{"text":"ü"}', "1"),
    ServerEvent("message", "two\n lines", "1"),
    ServerEvent("x", "", "7"),
    ServerEvent("message", "last", "7"),
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_events_do_not_depend_on_where_bytes_are_cut(cuts: list[int]) -> None:
    parser = EventParser()
    events = []
    places = [0, *sorted(cuts), len(STREAM)]
    for begin, end in pairwise(places):
        events += parser.feed(STREAM[begin:end])
    assert events == EVENTS


def test_data_that_is_no_map_is_an_empty_one() -> None:
    assert [ServerEvent("x", data, None).json() for data in ("[1]", "{", '{"a": 1}')] == [{}, {}, {"a": 1}]


def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MOST", 100)
    parser = EventParser()
    parser.feed(b"data: 12345\n" * 20)
    with pytest.raises(ValueError, match="more than 100 bytes"):
        parser.feed(b"data: 12345")
