"""Request bodies that are accepted or refused, and the explanations."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.errors import InvalidRequest
from prouter.requests import (
    AgentByAddress,
    AgentByProperties,
    AgentBySelect,
    AgentByUid,
    CreateRequest,
    RunRequest,
    SignalRequest,
    StartRequest,
    StopRequest,
    signal_number,
    validated,
)

MINIMAL: dict[str, Any] = {"args": ["true"], "env": {}}


@pytest.mark.parametrize(
    ("agent", "kind"),
    [
        ({"type": "uid", "uid": "a"}, AgentByUid),
        ({"type": "address", "address": "host:5000", "token": "t"}, AgentByAddress),
        ({"type": "address", "address": "[::1]:5000", "token": ""}, AgentByAddress),
        ({"type": "select", "uids": ["a", "b"]}, AgentBySelect),
        ({"type": "any", "properties": {"gpu": True, "cores": 4}}, AgentByProperties),
        ({"type": "any"}, AgentByProperties),
    ],
)
def test_create_takes_every_way_to_choose_an_agent(agent: dict[str, Any], kind: type) -> None:
    assert isinstance(validated(CreateRequest, {"name": "n", "agent": agent}).agent, kind)


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        None,
        "text",
        {"name": "n"},
        {"agent": {"type": "uid", "uid": "a"}},
        {"name": 1, "agent": {"type": "uid", "uid": "a"}},
        {"name": "n", "agent": {"type": "uid"}},
        {"name": "n", "agent": {"type": "uid", "uid": "a", "token": "t"}},
        {"name": "n", "agent": {"type": "uid", "uid": "a"}, "more": 1},
        {"name": "n", "agent": {"type": "select", "uids": []}},
        {"name": "n", "agent": {"type": "select", "uids": [1]}},
        {"name": "n", "agent": {"type": "address", "address": "host", "token": "t"}},
        {"name": "n", "agent": {"type": "address", "address": "host:0", "token": "t"}},
        {"name": "n", "agent": {"type": "address", "address": "host:70000", "token": "t"}},
        {"name": "n", "agent": {"type": "address", "address": "host:1"}},
        {"name": "n", "agent": {"type": "other"}},
        {"name": "n", "agent": "a"},
    ],
)
def test_create_refuses(body: object) -> None:
    with pytest.raises(InvalidRequest, match="Invalid request"):
        validated(CreateRequest, body)


def test_start_has_the_defaults_of_the_original() -> None:
    request = validated(StartRequest, MINIMAL)
    assert (request.cwd, request.port_expected_count, request.forward_stdout) == (None, 1, False)
    assert request.expose is None
    assert request.limits is None


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "n"},
        {"cwd": None},
        {"cwd": "sub/dir"},
        {"port_expected_count": 0},
        {"forward_stdout": True},
        {"env": {"A": "", "PATH": "/bin"}},
        {"expose": {}},
        {"expose": {"port": "assign", "path": "keep", "ready": "http", "timeout": 60, "preset": "jupyterlab"}},
        {"expose": {"port": "unix", "ready": "/health?x=1", "timeout": 0.5}},
        {
            "limits": {
                "timeout": 1.5,
                "memory": 1,
                "cpu_seconds": 2,
                "open_files": 9,
                "processes": 3,
                "sandbox_size": 10,
            }
        },
    ],
)
def test_start_takes(changes: dict[str, Any]) -> None:
    request = validated(StartRequest, {**MINIMAL, **changes})
    assert validated(StartRequest, json.loads(json.dumps(request.model_dump()))) == request


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"args": []}, "args"),
        ({"args": "true"}, "args"),
        ({"args": ["a\0b"]}, "args"),
        ({"args": [1]}, "args.0"),
        ({"env": {"PORT": 8000}}, "env.PORT"),
        ({"env": {"": "x"}}, "env"),
        ({"env": {"A=B": "x"}}, "env"),
        ({"env": {"A": "x\0"}}, "env.A"),
        ({"port_expected_count": -1}, "port_expected_count"),
        ({"port_expected_count": "1"}, "port_expected_count"),
        ({"port_expected_count": True}, "port_expected_count"),
        ({"port_expected_count": 1.5}, "port_expected_count"),
        ({"forward_stdout": 1}, "forward_stdout"),
        ({"arg": []}, "arg"),
        ({"expose": {"port": "any"}}, "expose.port"),
        ({"expose": {"ready": "soon"}}, "expose.ready"),
        ({"expose": {"ready": "/a b"}}, "expose.ready"),
        ({"expose": {"ready": "/a\r\nX: y"}}, "expose.ready"),
        ({"expose": {"timeout": 0}}, "expose.timeout"),
        ({"expose": {"timeout": float("nan")}}, "expose.timeout"),
        ({"expose": {"timeout": float("inf")}}, "expose.timeout"),
        ({"expose": {"preset": "cobol"}}, "expose.preset"),
        ({"limits": {"memory": "1G"}}, "limits.memory"),
        ({"limits": {"memory": 0}}, "limits.memory"),
        ({"limits": {"disk": 1}}, "limits.disk"),
    ],
)
def test_start_refuses_and_names_the_key(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        validated(StartRequest, {**MINIMAL, **changes})
    assert caught.value.detail.startswith("Invalid request: ")
    assert named in caught.value.detail


@pytest.mark.parametrize("missing", ["args", "env"])
def test_start_needs_args_and_env(missing: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{missing}: Field required"):
        validated(StartRequest, {key: value for key, value in MINIMAL.items() if key != missing})


def test_every_wrong_key_is_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        validated(StartRequest, {"args": [], "env": {"A": 1}, "extra": 0})
    assert all(name in caught.value.detail for name in ("args", "env.A", "extra"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"exposed": {}}, "exposed: no such key; did you mean expose?"),
        ({"expose": {"prot": "assign"}}, "expose.prot: no such key; did you mean port?"),
        ({"limits": {"zzz": 1}}, "limits.zzz: no such key; known are timeout, memory, "),
        ({"expose": True}, "expose: Input should be an object"),
        ({"args": "python3 x.py"}, "args: Input should be a list"),
    ],
)
def test_a_mistake_is_told_in_terms_of_json(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        validated(StartRequest, {**MINIMAL, **changes})
    assert told in caught.value.detail


def test_an_address_that_is_a_url_is_told_what_to_write() -> None:
    body = {"name": "n", "agent": {"type": "address", "address": "http://gpu-1:9000", "token": "t", "prot": 1}}
    with pytest.raises(InvalidRequest) as caught:
        validated(CreateRequest, body)
    assert "agent.address.address: must be 'host:port', not a URL; write 'gpu-1:9000'" in caught.value.detail
    assert "agent.address.prot: no such key" in caught.value.detail


def test_the_refusal_does_not_repeat_the_input() -> None:
    with pytest.raises(InvalidRequest) as caught:
        validated(CreateRequest, {"name": "n", "agent": {"type": "address", "address": "nowhere", "token": "hush"}})
    assert "hush" not in caught.value.detail


def test_run_is_create_and_start() -> None:
    body = {"name": "n", "agent": {"type": "uid", "uid": "a"}, "args": ["true"], "port_expected_count": 0}
    request = validated(RunRequest, body)
    assert request.create() == CreateRequest(name="n", agent=AgentByUid(type="uid", uid="a"))
    assert request.start() == StartRequest(args=["true"], env={}, port_expected_count=0)


def test_run_chooses_any_agent_unless_told() -> None:
    assert validated(RunRequest, {"name": "n", "args": ["true"]}).agent == AgentByProperties(type="any")


@pytest.mark.parametrize("name", ["TERM", "SIGTERM", "sigterm", "term"])
def test_signals_go_by_name(name: str) -> None:
    assert validated(SignalRequest, {"signal": name}).signal == "SIGTERM"


@pytest.mark.parametrize(
    "name",
    ["", "SIG", "NOPE", "15", 15, None, "RTMIN+31", "RTMAX-31", "RTMIN-1", "RTMIN+", "RTMIN+٣", "TERM+1", "x" * 9999],
)
def test_unknown_signals_are_refused(name: object) -> None:
    with pytest.raises(InvalidRequest):
        validated(SignalRequest, {"signal": name})


@pytest.mark.parametrize(
    ("name", "number"), [("RTMIN", 34), ("sigrtmin+0", 34), ("SIGRTMIN+3", 37), ("RTMAX-2", 62), ("RTMIN+30", 64)]
)
def test_real_time_signals_have_names(name: str, number: int) -> None:
    assert signal_number(validated(SignalRequest, {"signal": name}).signal) == number


def test_stop_has_a_grace() -> None:
    assert validated(StopRequest, {}).grace == 10
    assert validated(StopRequest, {"grace": 0}).grace == 0
    for wrong in (-1, 1e9, "1"):
        with pytest.raises(InvalidRequest):
            validated(StopRequest, {"grace": wrong})


texts = st.text("aA=é\n\0", max_size=4)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*StartRequest.model_fields, "other"]), json_values))
def test_any_json_is_taken_or_refused_in_one_line(body: dict[str, Any]) -> None:
    refusal = ""
    try:
        validated(StartRequest, body)
    except InvalidRequest as error:
        refusal = error.detail
    assert "\n" not in refusal


@pytest.mark.parametrize("model", [CreateRequest, StartRequest, RunRequest, SignalRequest, StopRequest])
def test_every_field_is_described_in_the_schema(model: type[CreateRequest]) -> None:
    schema = model.model_json_schema()
    assert schema["additionalProperties"] is False
    assert all("description" in field for field in schema["properties"].values())
