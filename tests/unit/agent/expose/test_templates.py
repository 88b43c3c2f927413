"""Templates in arguments and variables: exactly the known ones are filled in, whatever surrounds them."""

from __future__ import annotations

import json
import os
import re

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from prouter.agent.expose.templates import fill, fill_all

TOKENS = {
    "{port}": "8000",
    "{socket}": "/s/{port}",
    "{base_url}": "/jobs/c/j/http/",
    "{base_path}": "/jobs/c/j/http",
    "{sandbox}": "/tmp/{base_url}\udcff",
}
PIECES = st.sampled_from(
    [*TOKENS, "{", "}", "{{", "}}", "{}", "{ port}", "{Port}", "{port", "port}", "$", "%", "\\", "\n", "\udc80", "Ж"]
)
TEXTS = st.lists(PIECES | st.text(max_size=5), max_size=12).map("".join)


def expected(text: str, tokens: dict[str, str]) -> str:
    """By the definition: left to right, what is filled in is not looked at again."""
    result, at = "", 0
    while at < len(text):
        token = next((token for token in tokens if text.startswith(token, at)), None)
        result += tokens[token] if token else text[at]
        at += len(token) if token else 1
    return result


@given(TEXTS, st.sets(st.sampled_from(sorted(TOKENS))))
@example("{{port}}", {"{port}"})
@example("{port{port}}", {"{port}"})
@example("{base_url}{base_path}{base_", {"{base_url}"})
def test_exactly_the_tokens_with_a_value_are_filled_in(text: str, known: set[str]) -> None:
    tokens = {token: TOKENS[token] for token in known}
    assert fill(text, tokens) == expected(text, tokens)


@given(TEXTS)
def test_without_tokens_nothing_changes(text: str) -> None:
    assert fill(text, {}) == text


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=10,
    )
)
def test_json_passes_unless_it_holds_a_token(value: object) -> None:
    text = json.dumps(value)
    if not re.search(r"\{(port|socket|base_url|base_path|sandbox)\}", text):
        assert fill(text, TOKENS) == text


@given(st.binary(max_size=40))
def test_bytes_that_are_no_text_pass(data: bytes) -> None:
    name = os.fsdecode(b"{" + data + b"}{port}")
    assert os.fsencode(fill(name, {"{port}": "1"})).endswith(b"}1")
    assert os.fsencode(fill(os.fsdecode(data), {})) == data


@pytest.mark.parametrize("text", ["{" * 1_000_000, "{port" * 200_000, "{}" * 500_000, "{port}" * 100_000])
def test_huge_repetition_takes_time_in_proportion(text: str) -> None:
    """A pattern that backtracked would not end here within the test run."""
    assert fill(text, {"{port}": "8"}) == text.replace("{port}", "8")


def test_each_of_several_texts_is_filled_in() -> None:
    assert fill_all(["{port}", "x", ""], TOKENS) == ["8000", "x", ""]
