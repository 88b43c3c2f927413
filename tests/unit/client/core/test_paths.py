"""Names in a sandbox become paths that lead to nothing else."""

from __future__ import annotations

import os
from urllib.parse import unquote_to_bytes

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.client.core.lines import LineSplitter
from prouter.client.core.paths import encoded, is_directory_name, job_path, joined, query, segment

NAMES = st.lists(st.sampled_from(["a", "..", ".", "", "%2e", "ü", "?", "#", "\udcff", "a b", "...", "\\"]), max_size=6)


@given(NAMES)
def test_no_name_leaves_the_file_resource(parts: list[str]) -> None:
    name = "/".join(parts)
    url = httpx.URL("http://router/prefix/jobs/c/j/file/" + encoded(name))
    raw = url.raw_path
    assert raw.startswith(b"/prefix/jobs/c/j/file/")
    assert b"?" not in raw
    told = unquote_to_bytes(raw.removeprefix(b"/prefix/jobs/c/j/file/"))
    kept = [part for part in parts if part not in ("", ".")]
    assert told.lstrip(b"/") == os.fsencode("/".join(kept))
    assert told.startswith(b"/") == name.startswith("/")


def test_names_of_directories() -> None:
    assert [is_directory_name(name) for name in ("", ".", "a/", "a/.", "a", "a.")] == [True] * 4 + [False] * 2
    assert [joined(".", "x"), joined("", "x"), joined("a/", "x"), joined("a", "x")] == ["x", "x", "a/x", "a/x"]
    assert [segment(".."), segment("a/b?")] == ["%2E%2E", "a%2Fb%3F"]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/jobs/c/j", "/jobs/c/j"), ("http://h:1/jobs/c/j/http/x?y", "/jobs/c/j"), ("https://h/p/jobs/c/j", None),
        ("abc", None), ("/jobs/c", None), ("", None),
    ],
)  # fmt: skip
def test_paths_of_jobs(text: str, path: str | None) -> None:
    assert job_path(text) == path


def test_queries_leave_out_what_is_not_given() -> None:
    assert query(a=None, b=False, c=True, d=0, e=1.5, f="x&y", g=["1", "2"]) == "?c=1&d=0&e=1.5&f=x%26y&g=1&g=2"
    assert query(a=None) == ""


@given(st.lists(st.binary(max_size=8)))
def test_lines_do_not_depend_on_where_bytes_are_cut(pieces: list[bytes]) -> None:
    splitter = LineSplitter()
    lines = [line for piece in pieces for line in splitter.feed(piece)] + splitter.finish()
    whole = b"".join(pieces).decode("utf-8", "replace").split("\n")
    assert lines == (whole if whole[-1] else whole[:-1])
