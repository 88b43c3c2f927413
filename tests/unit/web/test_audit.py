"""The audit log of a worker: its lines, their files and sockets, and what gets none."""

from __future__ import annotations

import json
import logging
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from prouter.access.roles import OPEN_ROUTER, Principal, Role
from prouter.config.router import RouterAudit
from prouter.web.audit import AuditLog

ANN = Principal("ann", Role.USER, id="1")


def write(audit: AuditLog, principal: Principal | None = ANN, **changed: Any) -> None:
    facts = {"address": "192.0.2.1", "forwarded_for": "", "method": "POST", "path": "/jobs/c/j/start"}
    audit.write("start", principal=principal, **{**facts, "job": "j", "status": 200, "request": "r1", **changed})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_who_did_what_from_where_with_which_result(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    audit = AuditLog(RouterAudit(file=str(path)))
    write(audit, forwarded_for="203.0.113.9")
    (line,) = lines(path)
    assert line.pop("at").endswith("Z")
    assert line == {
        "operation": "start",
        "name": "ann",
        "role": "user",
        "via": "token",
        "token": "1",
        "from": "192.0.2.1",
        "forwarded_for": "203.0.113.9",
        "method": "POST",
        "path": "/jobs/c/j/start",
        "job": "j",
        "status": 200,
        "request": "r1",
        "about": None,
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nobody_has_no_name(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    audit = AuditLog(RouterAudit(file=str(path)))
    write(audit, None, status=401)
    write(audit, OPEN_ROUTER)
    assert [(line["name"], line["role"], line["via"], line["token"]) for line in lines(path)] == [
        (None, None, None, None),
        (None, "admin", "open", None),
    ]


def test_what_a_client_sends_stays_on_one_line_and_short(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    write(AuditLog(RouterAudit(file=str(path))), path="/a\n{}\xff" + "x" * 5000, forwarded_for="y" * 5000)
    (line,) = lines(path)
    assert line["path"].startswith("/a\n{}\xff")
    assert len(line["path"]) == len(line["forwarded_for"]) == 1024


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    audit = AuditLog(RouterAudit(file=str(path)))
    write(audit, request="r1")
    path.rename(tmp_path / "audit.log.1")
    write(audit, request="r2")
    assert [line["request"] for line in lines(tmp_path / "audit.log.1")] == ["r1"]
    assert [line["request"] for line in lines(path)] == ["r2"]


def test_the_systems_log_gets_the_same_lines(tmp_path: Path) -> None:
    place = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as system:
        system.bind(place)
        system.settimeout(10)
        write(AuditLog(RouterAudit(syslog=place)))
        data = system.recv(65536)
    assert data.startswith(b"<86>prouter: {")
    assert json.loads(data.removeprefix(b"<86>prouter: "))["name"] == "ann"


def test_a_log_that_cannot_be_written_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "missing"
    audit = AuditLog(RouterAudit(file=str(directory / "audit.log")))
    with caplog.at_level(logging.ERROR, "prouter.audit"):
        write(audit)
        write(audit)
        assert len(caplog.records) == 1
        directory.mkdir()
        write(audit)
    assert len(lines(directory / "audit.log")) == 1


def test_requests_without_a_token_cannot_fill_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    audit = AuditLog(RouterAudit(file=str(path)))
    for _ in range(1000):
        write(audit, None)
    write(audit, request="mine")
    written = lines(path)
    assert len(written) <= 2 * 60 + 1
    assert written[-1]["request"] == "mine"


def test_a_session_is_a_person_an_address_and_a_job(tmp_path: Path) -> None:
    audit = AuditLog(RouterAudit(file=str(tmp_path / "audit.log")))
    assert audit.begins_session(ANN, "a", "j", 1000.0)
    assert not audit.begins_session(ANN, "a", "j", 1599.0)
    assert audit.begins_session(ANN, "b", "j", 1599.0)
    assert audit.begins_session(ANN, "a", "k", 1599.0)
    assert audit.begins_session(Principal("ann", Role.USER, id="2"), "a", "j", 1599.0)
    assert audit.begins_session(ANN, "a", "j", 1600.0)
