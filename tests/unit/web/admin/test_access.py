"""The table of roles has every route, and what it says is what a request meets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import falcon.testing
import pytest

from prouter.access.gate import AccessGate
from prouter.access.roles import Need, Principal, Role
from prouter.web.admin.access import need_of
from prouter.web.admin.app import create_app
from prouter.web.admin.operations import OPERATIONS
from prouter.web.route_roles import JOB_HTTP, NEEDS
from tests.support.api_stand import PATH, StandInRouter, job_info
from tests.unit.web.admin.test_openapi import served


def test_the_table_has_every_operation_and_no_other() -> None:
    assert set(NEEDS) == {operation.name for operation in OPERATIONS} | {JOB_HTTP}


def test_every_route_that_is_served_is_in_the_table() -> None:
    missing = [(method, path) for method, path in served() if need_of(method.upper(), path) is None]
    assert not missing, "name what these routes need in prouter/web/route_roles.py"


def test_what_only_reads_is_for_viewers_except_files_logs_and_tokens() -> None:
    for operation in OPERATIONS:
        if operation.method == "get" and NEEDS[operation.name] not in (Need.VIEWER, Need.NOTHING):
            assert any(
                part in operation.path for part in ("/file", "/archive", "/logs", "/share", "/tokens", "/tcp")
            ), operation.path


def test_a_noun_needs_the_same_with_a_path_below_it() -> None:
    job = "/jobs/{connection}/{job}"
    assert need_of("POST", f"{job}/file") is need_of("POST", f"{job}/file/{{rest:path}}") is Need.OWNER
    assert need_of("HEAD", f"{job}/info") is Need.VIEWER
    assert need_of("OPTIONS", f"{job}/remove") is Need.VIEWER
    assert need_of("DELETE", "/info") is None
    assert need_of("GET", "/nowhere") is None


@pytest.fixture
def router(tmp_path: Path) -> StandInRouter:
    return StandInRouter(gate=AccessGate(tmp_path, always=True))


def ask(router: StandInRouter, method: str, path: str, role: Role | None) -> Any:
    app = create_app(router, router.config, router.gate)  # type: ignore[arg-type]
    principal = None if role is None else Principal("ann", role, id="1")
    return falcon.testing.TestClient(app).simulate_request(
        method, path, extras={"prouter.principal": principal}, headers={"Host": "localhost"}
    )


@pytest.mark.parametrize("path", ["/info", "/nowhere", "/tokens", f"{PATH}/info", f"{PATH}/nothing", "/"])
def test_without_credentials_nothing_is_said_of_what_there_is(router: StandInRouter, path: str) -> None:
    for method in ("GET", "POST", "OPTIONS", "BREW"):
        result = ask(router, method, path, None)
        assert result.status_code == 401
        assert result.headers["WWW-Authenticate"].startswith("Bearer ")
        assert result.json["code"] == "unauthorized"
    assert router.calls == []


def test_health_is_for_everybody(router: StandInRouter) -> None:
    assert ask(router, "GET", "/healthz", None).status_code == 200
    assert ask(router, "GET", "/readyz", None).status_code == 200
    assert ask(router, "POST", "/healthz", None).status_code == 401


def test_a_request_that_did_not_come_through_the_worker_is_nobodys(router: StandInRouter) -> None:
    app = create_app(router, router.config, router.gate)  # type: ignore[arg-type]
    assert falcon.testing.TestClient(app).simulate_get("/info", headers={"Host": "localhost"}).status_code == 401


def test_somebody_with_a_role_learns_what_is_missing(router: StandInRouter) -> None:
    assert ask(router, "GET", "/nowhere", Role.VIEWER).status_code == 404
    refused = ask(router, "POST", "/shutdown", Role.OPERATOR)
    assert (refused.status_code, refused.json["code"]) == (403, "role_needed")
    assert "this needs the role admin" in refused.json["detail"]
    assert "WWW-Authenticate" not in refused.headers


def test_a_keyed_request_gives_another_user_another_job(router: StandInRouter) -> None:
    router.answers["jobs.create"] = {"job": job_info()}
    app = create_app(router, router.config, router.gate)  # type: ignore[arg-type]
    client = falcon.testing.TestClient(app)
    for name in ("ann", "bob"):
        client.simulate_post(
            "/jobs/create",
            json={"name": "a", "agent": {"type": "any"}},
            headers={"Host": "localhost", "Idempotency-Key": "k"},
            extras={"prouter.principal": Principal(name, Role.USER, id="1")},
        )
    sent = [args for op, args in router.calls if op == "jobs.create"]
    assert [args["owner"] for args in sent] == ["ann", "bob"]
    assert sent[0]["key"] != sent[1]["key"]
