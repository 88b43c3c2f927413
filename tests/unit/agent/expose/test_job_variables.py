"""What a job sees: variables of the agent, properties, and values of templates."""

from __future__ import annotations

import pytest

from prouter.agent.expose.templates import fill
from prouter.agent.jobs.starts.environment import base_environment, completed, place
from prouter.jobs import JobRecord


def test_the_agents_own_variables_stay_with_the_agent() -> None:
    own = {
        "PROUTER_CLIENT__TOKEN": "secret",
        "PROUTER_JOB_ID": "of the job this agent runs in",
        "NOTIFY_SOCKET": "/run/systemd/notify",
        "LISTEN_FDS": "1",
        "WATCHDOG_USEC": "1",
        "CREDENTIALS_DIRECTORY": "/run/credentials",
        "DA__PAGENT__JOB_ENDPOINT": "http://elsewhere",
    }
    assert base_environment({**own, "PATH": "/bin", "HOME": "/root"}, {}) == {"PATH": "/bin", "HOME": "/root"}


def test_properties_become_variables_with_their_exact_names() -> None:
    properties = {
        "zone": "a",
        "GPU": "a100",
        "Mixed Case 1": "with spaces",
        "größer ЮНИКОД": "èüîû",
        "cores": 8,
        "share": 0.5,
        "fast": True,
        "tags": ["a", "b"],
        "none": None,
        "empty": "",
        "odd=name\0": "x\0y=z",
    }
    assert base_environment({}, properties) == {
        "DA__PAGENT__zone": "a",
        "DA__PAGENT__GPU": "a100",
        "DA__PAGENT__Mixed Case 1": "with spaces",
        "DA__PAGENT__größer ЮНИКОД": "èüîû",
        "DA__PAGENT__cores": "8",
        "DA__PAGENT__share": "0.5",
        "DA__PAGENT__fast": "True",
        "DA__PAGENT__tags": '["a", "b"]',
        "DA__PAGENT__none": "null",
        "DA__PAGENT__empty": "",
        "DA__PAGENT__odd_name_": "xy=z",
    }


LOOPBACK = "127.0.0.1,localhost,::1"


@pytest.mark.parametrize(
    ("environment", "requested", "no_proxy"),
    [
        ({}, {}, (None, None)),
        ({"NO_PROXY": "corp"}, {}, (None, "corp")),
        ({"http_proxy": ""}, {}, (None, None)),
        ({"http_proxy": "http://p"}, {}, (LOOPBACK, LOOPBACK)),
        ({"HTTPS_PROXY": "http://p"}, {}, (LOOPBACK, LOOPBACK)),
        ({"all_proxy": "socks://p"}, {}, (LOOPBACK, LOOPBACK)),
        ({}, {"HTTP_PROXY": "http://p"}, (LOOPBACK, LOOPBACK)),
        ({"http_proxy": "http://p", "NO_PROXY": "corp, .x,"}, {}, (f"corp, .x,{LOOPBACK}",) * 2),
        ({"http_proxy": "http://p", "no_proxy": "a", "NO_PROXY": "b"}, {}, (f"a,{LOOPBACK}", f"b,{LOOPBACK}")),
        ({"http_proxy": "http://p", "no_proxy": "localhost"}, {}, ("localhost,127.0.0.1,::1",) * 2),
        ({"http_proxy": "http://p", "no_proxy": "*"}, {}, ("*", "*")),
        ({"http_proxy": "http://p", "no_proxy": "a"}, {"NO_PROXY": "mine"}, ("a", "mine")),
        ({"http_proxy": "http://p"}, {"no_proxy": ""}, ("", None)),
    ],
)
def test_loopback_is_reached_round_a_proxy(
    environment: dict[str, str], requested: dict[str, str], no_proxy: tuple[str | None, str | None]
) -> None:
    found = completed({**environment, **requested}, requested)
    assert (found.get("no_proxy"), found.get("NO_PROXY")) == no_proxy


def test_pythons_output_is_unbuffered_unless_somebody_says_otherwise() -> None:
    assert completed({}, {})["PYTHONUNBUFFERED"] == "1"
    assert completed({"PYTHONUNBUFFERED": ""}, {})["PYTHONUNBUFFERED"] == ""


def test_a_job_knows_its_place() -> None:
    variables = place(JobRecord("j", "c", "name"), "/sandbox")
    assert variables == {
        "PROUTER_JOB_ID": "j",
        "PROUTER_JOB_PATH": "/jobs/c/j",
        "PROUTER_BASE_URL": "/jobs/c/j/http/",
        "PROUTER_BASE_PATH": "/jobs/c/j/http",
        "PROUTER_SANDBOX": "/sandbox",
    }


def test_a_job_that_reports_its_port_knows_where_to() -> None:
    variables = place(JobRecord("j", "c", "name"), "/sandbox", report_to="http://127.0.0.1:1/x")
    assert variables["DA__PAGENT__JOB_ENDPOINT"] == "http://127.0.0.1:1/x"
    assert variables["DA__PAGENT__JOB_ID"] == "j"


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("--port={port}", "--port=8000"),
        ("{port}{port} {base_url}", "80008000 /b/"),
        ('{"port": {port}, "other": {}}', '{"port": 8000, "other": {}}'),
        ("{{port}}", "{8000}"),
        ("{socket}", "{socket}"),
        ("{Port} { port } {ports} ${port", "{Port} { port } {ports} ${port"),
        ("plain", "plain"),
    ],
)
def test_only_the_exact_tokens_that_have_a_value_are_replaced(text: str, filled: str) -> None:
    assert fill(text, {"{port}": "8000", "{base_url}": "/b/"}) == filled


def test_what_is_filled_in_is_not_filled_in_again() -> None:
    assert fill("{sandbox}", {"{sandbox}": "/tmp/{port}", "{port}": "1"}) == "/tmp/{port}"
