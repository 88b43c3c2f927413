"""Which variables of the agent's environment jobs get."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.agent.jobs.starts.inherited import ALWAYS, inherited

SECRETS = [
    "GITHUB_TOKEN",
    "CLIENT_SECRET",
    "DB_PASSWORD",
    "PGPASSWORD",
    "MYSQL_PWD",
    "FTP_PASSWD",
    "WANDB_API_KEY",
    "OPENAI_APIKEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_CONNECTION_STRING",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "SSH_PRIVATE_KEY",
    "SSH_AUTH_SOCK",
    "KUBECONFIG",
    "REGISTRY_AUTH",
    "SENTRY_DSN",
    "db_password",
]
ORDINARY = ["PATH", "PWD", "OLDPWD", "GIT_AUTHOR_NAME", "LD_LIBRARY_PATH", "CUDA_HOME", "KEYBOARD", "XDG_RUNTIME_DIR"]


@pytest.mark.parametrize("name", SECRETS)
def test_what_looks_like_a_secret_is_withheld_unless_it_is_named(name: str) -> None:
    environ = {name: "value", "PATH": "/bin"}
    assert inherited(environ, None) == ({"PATH": "/bin"}, [name])
    assert inherited(environ, ["*"]) == ({"PATH": "/bin"}, [name])
    assert inherited(environ, ["*", name]) == (environ, [])
    assert inherited(environ, [f"{name[:-1]}?"]) == (environ, [])


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_variables_pass(name: str) -> None:
    assert inherited({name: "value"}, None) == ({name: "value"}, [])


@pytest.mark.parametrize(
    "value",
    ["postgres://me:word@host/db", "redis://:word@host", "-----BEGIN RSA PRIVATE KEY-----\nMII", "prt_" + "x" * 43],
)
def test_values_that_hold_a_password_or_key_are_withheld(value: str) -> None:
    assert inherited({"SETTING": value}, None) == ({}, ["SETTING"])
    assert inherited({"SETTING": value}, ["SETTING"]) == ({"SETTING": value}, [])


@pytest.mark.parametrize("value", ["https://host:8080/a", "ssh://git@host", "a:b@c", "http://host/?q=a:b@c"])
def test_addresses_without_a_password_pass(value: str) -> None:
    assert inherited({"SETTING": value}, None) == ({"SETTING": value}, [])


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ("http://me:word@proxy:3128/", "http://proxy:3128/"),
        ("me:word@proxy:3128", "proxy:3128"),
        ("http://me:w@rd@proxy:3128", "http://proxy:3128"),
        ("http://me:w/rd@proxy:3128", None),
        ("http://proxy:3128", "http://proxy:3128"),
    ],
)
def test_proxies_pass_without_their_password(given: str, passed: str | None) -> None:
    expected = {} if passed is None else {"https_proxy": passed}
    assert inherited({"https_proxy": given}, None) == (expected, ["https_proxy"] if given != passed else [])
    assert inherited({"https_proxy": given}, ["*_proxy"]) == ({"https_proxy": given}, [])


def test_a_list_narrows_what_passes() -> None:
    environ = {"PATH": "/bin", "HOME": "/root", "CUDA_HOME": "/cuda", "MODULEPATH": "/m", "A": "1"}
    assert inherited(environ, [])[0] == {"PATH": "/bin", "HOME": "/root"}
    assert inherited(environ, ["CUDA_*"])[0] == {"PATH": "/bin", "HOME": "/root", "CUDA_HOME": "/cuda"}


@given(st.dictionaries(st.text(), st.text()), st.none() | st.lists(st.text()))
def test_nothing_is_invented(environ: dict[str, str], patterns: list[str] | None) -> None:
    passed, withheld = inherited(environ, patterns)
    assert passed.keys() <= environ.keys()
    assert set(withheld) <= environ.keys() - ALWAYS
