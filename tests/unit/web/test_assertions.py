"""What jobs are told about their visitors: made once a minute, and without an assertion where none can be made."""

from __future__ import annotations

import time
from pathlib import Path

import jwt
import pytest

from prouter.access.assertion_keys import ASSERTION_KEYS, AssertionKeys
from prouter.access.roles import Principal, Role
from prouter.web.assertions import Assertions

ALICE = Principal("alice", Role.USER, "session", "3f9a2c01", session="s" * 48, ambient=True)


def told(lines: bytes) -> dict[str, str]:
    pairs = [line.partition(": ") for line in lines.decode("ascii").split("\r\n") if line]
    return {name: value for name, _, value in pairs}


def claims(lines: bytes) -> dict[str, str]:
    found: dict[str, str] = jwt.decode(told(lines)["X-PRouter-Assertion"], options={"verify_signature": False})
    return found


def test_an_assertion_serves_one_visitor_of_one_job_for_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assertions = Assertions(AssertionKeys(tmp_path), lambda: "r")
    first = assertions.lines(ALICE, "c", "j")
    assert assertions.lines(ALICE, "c", "j") is first
    assert told(first)["X-PRouter-User"] == "alice"
    found = claims(first)
    expected = {"iss": "r", "sub": "alice", "aud": "j", "role": "user", "via": "session", "job": "/jobs/c/j"}
    assert {name: found[name] for name in expected} == expected
    assert "s" * 48 not in str(found), "the session"
    others = [
        (ALICE, "other"),
        (Principal("bob", Role.USER, "session", "3f9a2c01"), "j"),
        (Principal("alice", Role.OPERATOR, "proxy"), "j"),
        (Principal("alice", Role.USER, "token", "3f9a2c01"), "j"),
    ]
    for principal, job in others:
        seen = claims(assertions.lines(principal, "c", job))
        assert (seen["sub"], seen["role"], seen["via"], seen["aud"]) == (
            principal.name,
            principal.role.label,
            principal.via,
            job,
        )
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    assert assertions.lines(ALICE, "c", "j") != first


def test_a_share_links_visitor_is_told_with_the_link(tmp_path: Path) -> None:
    visitor = Principal("share:0a1b", Role.VIEWER, "share", "0a1b", job="j")
    found = claims(Assertions(AssertionKeys(tmp_path), lambda: "r").lines(visitor, "c", "j"))
    assert (found["sub"], found["via"], found["share"]) == ("share:0a1b", "share", "0a1b")


@pytest.mark.parametrize("trouble", ["damaged", "not known yet", "not writable"])
def test_without_a_key_the_name_goes_alone(
    tmp_path: Path, trouble: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    uid = "" if trouble == "not known yet" else "r"
    if trouble == "damaged":
        (state / ASSERTION_KEYS).write_text("damaged")
    if trouble == "not writable":
        state.rmdir()
        state.write_text("no directory")
    assertions = Assertions(AssertionKeys(state), lambda: uid)
    for _ in range(5):
        assert told(assertions.lines(ALICE, "c", "j")) == {"X-PRouter-User": "alice"}
    assert len(caplog.records) == (0 if uid == "" else 1), "not with every request"
    if trouble == "not writable":
        state.unlink()
    (state / ASSERTION_KEYS).unlink(missing_ok=True)
    uid = "r"
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 2)
    assert claims(assertions.lines(ALICE, "c", "j"))["sub"] == "alice"
