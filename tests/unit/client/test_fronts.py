"""Both fronts have the same methods; the package imports little; tokens go where they belong."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from prouter import client
from prouter.client import AsyncJob, AsyncRouter, Job, Router
from prouter.client.settings import Settings, lost, note_redirect, own_url

ROOT = Path(__file__).parents[3]


def public(cls: type) -> dict[str, Any]:
    members = [member for one in cls.__mro__[:-1] for member in vars(one).items()]
    return {name: value for name, value in members if not name.startswith("_")}


@pytest.mark.parametrize(("blocking", "awaiting"), [(Router, AsyncRouter), (Job, AsyncJob)])
def test_both_fronts_have_the_same_methods_and_arguments(blocking: type, awaiting: type) -> None:
    mine, other = public(blocking), public(awaiting)
    assert mine.keys() == other.keys()
    for name, value in mine.items():
        assert bool(inspect.getdoc(value)), name
        if inspect.isfunction(value):
            ours, theirs = inspect.signature(value), inspect.signature(other[name])
            assert [str(one) for one in ours.parameters.values()] == [
                str(one).replace("str | os.PathLike[str]", "Local") if "Local" in str(ours) else str(one)
                for one in theirs.parameters.values()
            ], name


def loaded(statement: str) -> set[str]:
    """The modules that a program has after a statement."""
    program = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_an_import_loads_little_and_nothing_of_the_router() -> None:
    before = loaded("pass")
    assert len(loaded("import prouter.client") - before) < 10
    blocking = loaded("from prouter.client import *") - before
    assert len(blocking) < 450
    roots = {name.partition(".")[0] for name in blocking}
    assert not roots & {"gevent", "gunicorn", "falcon", "zmq", "pydantic", "msgpack", "yaml", "jwt"}
    own = {name for name in blocking if name.startswith("prouter.")}
    assert {name for name in own if not name.startswith("prouter.client")} == set()


def test_every_name_can_be_imported() -> None:
    assert all(getattr(client, name).__name__ in {name, "Callable"} for name in client.__all__ if name != "Progress")
    assert {*client.__all__} <= {*dir(client)}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        client.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("url", "token", "known", "secret", "expected"),
    [
        (None, None, None, None, ("http://127.0.0.1:8888", None)),
        (None, None, "http://r:1/p/", "t", ("http://r:1/p", "t")),
        ("http://x", "own", "http://r:1", "t", ("http://x", "own")),
        ("http://r:1/", None, "http://r:1", "t", ("http://r:1", "t")),
        ("http://other:1", None, "http://r:1", "t", ("http://other:1", None)),
        ("https://r:1", None, "http://r:1", "t", ("https://r:1", None)),
        ("http://r", None, None, "t", ("http://r", "t")),
        ("http://x:se%20cret@r:1", None, None, "t", ("http://r:1", "se cret")),
    ],
)
def test_the_token_of_the_environment_is_for_the_router_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
    url: str | None,
    token: str | None,
    known: str | None,
    secret: str | None,
    expected: tuple[str, str | None],
) -> None:
    for name, value in (("PROUTER_URL", known), ("PROUTER_TOKEN", secret)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    settings = Settings.of(url, token, True, None)
    assert (settings.url, settings.token) == expected
    assert "token" not in repr(settings)


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:8888", "http://", "unix:/x"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="http://"):
        Router(url)


def test_the_token_is_shown_to_the_job_and_to_nobody_else() -> None:
    settings = Settings.of("http://r:1/p", "t", True, None)
    path = "/jobs/c/j"

    def shown(url: str, **headers: str) -> str | None:
        request = httpx.Request("GET", url, headers=headers)
        settings.direct(request, path)
        value = request.headers.get("Authorization")
        return value if value is None else str(value)

    assert shown("http://r:1/p/jobs/c/j/http/x?y") == "Bearer t"
    assert shown("http://r:1/p/jobs/c/j/http") == "Bearer t"
    assert shown("http://r:1/p/jobs/c/j/http/", Authorization="Basic mine") == "Basic mine"
    assert shown("http://evil/p/jobs/c/j/http/", Authorization="Bearer t") is None
    assert shown("https://r:1/p/jobs/c/j/http/", Authorization="Bearer t") is None
    for url in ("http://r:1/p/jobs/c/j/stop", "http://r:1/shutdown", "http://r:1/p/jobs/c/j/http2/",
                "http://r:1/p/jobs/c/j/http/../stop", "http://r:1/jobs/c/j/http/"):  # fmt: skip
        with pytest.raises(ValueError, match="below the job's own address"):
            shown(url)


def test_requests_go_to_a_jobs_own_name_by_the_router() -> None:
    settings = Settings.of("http://r:1/p", "t", True, None)
    path, own = "/jobs/c/j", own_url("J", "http://j.jobs.example:1/")
    assert own_url("j", "http://r:1/p/jobs/c/j/http/") is None
    assert own_url("j", None) is None

    def directed(url: str, location: str = "", **headers: str) -> tuple[str, str, str | None]:
        request = httpx.Request("GET", url, headers=headers)
        if location:
            note_redirect(httpx.Response(302, headers={"Location": location}, request=request))
        settings.direct(request, path, own)
        return str(request.url), request.headers["Host"], request.headers.get("Authorization")

    name = "j.jobs.example:1"
    assert directed("http://r:1/p/jobs/c/j/http/x?y") == ("http://r:1/jobs/c/j/http/x?y", name, "Bearer t")
    assert directed(f"http://{name}/x") == ("http://r:1/x", name, "Bearer t")
    assert directed("http://r:1/y", location="/y") == ("http://r:1/y", name, "Bearer t")
    assert directed("http://other.jobs.example:1/", Authorization="Bearer t") == (
        "http://other.jobs.example:1/", "other.jobs.example:1", None,
    )  # fmt: skip
    with pytest.raises(ValueError, match="below the job's own address"):
        directed("http://r:1/p/whoami")
    with pytest.raises(ValueError, match="below the job's own address"):
        directed("http://r:1/p/whoami", location="http://r:1/p/whoami", Host=name)


def test_a_secret_is_in_no_representation() -> None:
    with Router("http://user:s3cret@127.0.0.1:1") as router:
        assert "s3cret" not in repr(router) + repr(router._driver.settings) + router.url


def test_losses_tell_whether_the_request_was_sent() -> None:
    assert not lost(httpx.ConnectError("refused")).sent
    assert lost(httpx.ReadError("reset")).sent
    assert lost(httpx.ReadTimeout("")).reason == "no byte came in time"
    assert lost(httpx.ConnectError("CERTIFICATE_VERIFY_FAILED")).hopeless
    assert lost(httpx.ConnectError("[SSL: WRONG_VERSION_NUMBER] …")).hopeless
