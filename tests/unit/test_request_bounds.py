"""Every field of a request has a limit, and `null` stands for a field that has a default."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from prouter.agent.expose.exposure import resolve
from prouter.agent.expose.sizes import check_sizes
from prouter.errors import InvalidRequest
from prouter.requests import (
    MAX_STRING,
    BridgeRequest,
    CreateRequest,
    RunRequest,
    SignalRequest,
    StartRequest,
    StopRequest,
    digest,
    validated,
)

START: dict[str, Any] = {"args": ["true"], "env": {}}
BY_UID = {"type": "uid", "uid": "a"}
DEEP: Any = None
for _ in range(300):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("model", "body", "named"),
    [
        (CreateRequest, {"name": "n" * 513, "agent": BY_UID}, "name"),
        (CreateRequest, {"name": "a\0b", "agent": BY_UID}, "name"),
        (CreateRequest, {"name": "a\nb", "agent": BY_UID}, "name"),
        (CreateRequest, {"name": "\x7f", "agent": BY_UID}, "name"),
        (CreateRequest, {"name": "\x85", "agent": BY_UID}, "name"),
        (CreateRequest, {"name": "\ud800", "agent": BY_UID}, "name"),
        (CreateRequest, {"name": "n", "agent": {"type": "uid", "uid": "u" * 1025}}, "agent.uid"),
        (CreateRequest, {"name": "n", "agent": {"type": "select", "uids": ["u"] * 10_001}}, "agent.select.uids"),
        (CreateRequest, {"name": "n", "agent": {"type": "select", "uids": ["u" * 1025]}}, "agent.select.uids"),
        (CreateRequest, {"name": "n", "agent": {"type": "any", "properties": {"p": "x" * 20_000}}}, "properties"),
        (CreateRequest, {"name": "n", "agent": {"type": "any", "properties": {"p": DEEP * 99}}}, "properties"),
        (
            CreateRequest,
            {"name": "n", "agent": {"type": "address", "address": "h" * 600 + ":1", "token": ""}},
            "address",
        ),
        (CreateRequest, {"name": "n", "agent": {"type": "address", "address": "h:1", "token": "t" * 5000}}, "token"),
        (StartRequest, {**START, "args": ["a"] * 131_073}, "args"),
        (StartRequest, {**START, "args": ["a" * (MAX_STRING + 1)]}, "args.0"),
        (StartRequest, {**START, "args": ["é" * (MAX_STRING // 2 + 1)]}, "args.0"),
        (StartRequest, {**START, "env": {f"A{number}": "" for number in range(16_385)}}, "env"),
        (StartRequest, {**START, "env": {"A": "x" * MAX_STRING}}, "env"),
        (StartRequest, {**START, "env": {"A" * (MAX_STRING + 1): ""}}, "env"),
        (StartRequest, {**START, "name": "n" * 513}, "name"),
        (StartRequest, {**START, "cwd": "d" * 4097}, "cwd"),
        (StartRequest, {**START, "expose": {"ready": "/" + "r" * 5000}}, "expose.ready"),
        (StartRequest, {**START, "expose": {"timeout": 1e308}}, "expose.timeout"),
        (StartRequest, {**START, "limits": {"cpu_seconds": 1e308}}, "limits.cpu_seconds"),
        (StartRequest, {**START, "limits": {"timeout": 1e308}}, "limits.timeout"),
        (RunRequest, {**START, "name": "n" * 1_000_000}, "name"),
        (RunRequest, {**START, "name": "a\x1bb"}, "name"),
        (BridgeRequest, {"url": "ws://h/" + "u" * 9000}, "url"),
        (SignalRequest, {"signal": "S" * 100_000}, "signal"),
        (StopRequest, {"grace": 1e308}, "grace"),
    ],
)
def test_what_is_too_much_is_refused_in_few_words(model: type[BaseModel], body: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        validated(model, body)
    assert caught.value.detail.startswith("Invalid request: ")
    assert named.split(".")[-1] in caught.value.detail
    assert len(caught.value.detail) < 1000


def test_many_wrong_things_are_explained_by_the_first_ones() -> None:
    with pytest.raises(InvalidRequest) as caught:
        validated(StartRequest, {**START, "env": {"x" * 5000 + str(number): number for number in range(5000)}})
    assert len(caught.value.detail) < 5000
    assert caught.value.detail.endswith("more")


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (CreateRequest, {"name": "n" * 512, "agent": {"type": "uid", "uid": "u" * 1024}}),
        (CreateRequest, {"name": "Ärger 日本 👍 a​b", "agent": BY_UID}),
        (CreateRequest, {"name": "", "agent": BY_UID}),
        (StartRequest, {**START, "args": ["x" * MAX_STRING] * 7}),
        (StartRequest, {**START, "args": ["a\n\tb", ""]}),
        (StartRequest, {**START, "limits": {"cpu_seconds": 1e9, "timeout": 1e9, "memory": 2**62}}),
        (StartRequest, {**START, "env": {"A": "x" * 131_000}}),
    ],
)
def test_what_a_real_program_needs_is_taken(model: type[BaseModel], body: dict[str, Any]) -> None:
    validated(model, body)


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (
            StartRequest,
            {
                "args": ["true"],
                "env": None,
                "name": None,
                "cwd": None,
                "port_expected_count": None,
                "forward_stdout": None,
                "expose": None,
                "limits": None,
            },
        ),
        (StartRequest, {**START, "expose": dict.fromkeys(["port", "path", "ready", "timeout", "preset"])}),
        (StartRequest, {**START, "limits": dict.fromkeys(["timeout", "memory", "cpu_seconds", "open_files"])}),
        (RunRequest, {"name": "n", "args": ["true"], "env": None, "agent": None}),
        (RunRequest, {"name": "n", "args": ["true"], "agent": {"type": "any", "properties": None}}),
        (StopRequest, {"grace": None}),
    ],
)
def test_null_is_as_good_as_nothing(model: type[BaseModel], body: dict[str, Any]) -> None:
    given = validated(model, body)
    least = {key: value for key, value in body.items() if value is not None}
    plain = validated(model, {**({"env": {}} if model is StartRequest else {}), **least})
    assert digest(given) == digest(plain) or isinstance(body.get("expose") or body.get("limits"), dict)


@pytest.mark.parametrize("body", [{"args": None, "env": {}}, {"args": ["true"]}, {"args": [None], "env": {}}])
def test_null_does_not_stand_for_what_is_needed(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        validated(StartRequest, body)


TOKENS = {"{sandbox}": "/s" * 50, "{port}": "65535"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"args": ["true", "{sandbox}" * 1400]}, "args.1: 140000 bytes"),
        ({"args": ["true", *["{sandbox}" * 1000] * 80]}, "args and env have"),
        ({"env": {"A": "{sandbox}" * 1400}}, "env.A"),
    ],
)
def test_templates_that_grow_too_much_are_refused(changes: dict[str, Any], named: str) -> None:
    request = validated(StartRequest, {**START, **changes, "expose": {"port": "assign"}})
    with pytest.raises(InvalidRequest, match=named):
        check_sizes(request, resolve(request), TOKENS)


def test_without_expose_templates_are_plain_text() -> None:
    request = validated(StartRequest, {**START, "args": ["true", "{sandbox}" * 1400]})
    check_sizes(request, resolve(request), TOKENS)


def test_a_digest_tells_bodies_apart_and_not_how_they_are_written() -> None:
    one = validated(StartRequest, {"args": ["a"], "env": {"A": "1", "B": "2"}})
    assert digest(one) == digest(validated(StartRequest, {"env": {"B": "2", "A": "1"}, "args": ["a"], "cwd": None}))
    assert digest(one) != digest(validated(StartRequest, {"args": ["a"], "env": {"A": "1", "B": "3"}}))
