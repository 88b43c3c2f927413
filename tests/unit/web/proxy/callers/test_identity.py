"""Who sends a request, by credentials that a browser adds to the requests of any page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prouter.access.gate import AccessGate
from prouter.access.roles import Principal
from prouter.access.session_ids import new_session_id
from prouter.access.signing import Kind
from prouter.access.tokens import configured
from prouter.config.router import RouterControl
from prouter.web.proxy.addresses.forwarded import Forwarded, Origin
from prouter.web.proxy.callers.identity import Identity
from prouter.web.proxy.messages.heads import parse_request

JOB = "0c" * 16
OWN = {"job_domain": "jobs.example", "job_domain_only": True}
FETCH = b"Sec-Fetch-Mode: cors\r\nSec-Fetch-Site: %s\r\n"


@pytest.fixture
def gate(tmp_path: Path) -> AccessGate:
    return AccessGate(tmp_path, configured([f"ann:user:sha256:{'ab' * 32}"]))


def find(gate: AccessGate, fields: bytes, job: str | None = None, **where: Any) -> Principal | None:
    control = RouterControl(**where.pop("control", {}))
    head = parse_request(b"GET / HTTP/1.1\r\nHost: r.example\r\n" + fields + b"\r\n")
    return Identity(gate, control).find(Forwarded(head, Origin("192.0.2.1", 1, trusted=False)), job, **where)


def session(gate: AccessGate) -> bytes:
    token = gate.token("config-1")
    assert token is not None
    text = gate.key.sign(Kind.SESSION, {"tid": token.id, "sid": new_session_id(token)}, 60)
    return b"Cookie: prouter_session=" + text.encode() + b"\r\n"


@pytest.mark.parametrize(
    ("site", "control", "counts"),
    [
        (b"same-origin", OWN, True),
        (b"none", OWN, True),
        (b"same-site", OWN, False),
        (b"cross-site", OWN, False),
        (b"same-origin", {}, False),
        (b"same-origin", {"job_domain": "jobs.example"}, False),
    ],
)
def test_a_session_counts_without_a_proof_where_no_job_shares_the_origin(
    gate: AccessGate, site: bytes, control: dict[str, Any], counts: bool
) -> None:
    assert (find(gate, session(gate) + FETCH % site, control=control) is not None) is counts


def test_a_session_opens_no_job_below_its_path_in_a_browser(gate: AccessGate) -> None:
    assert find(gate, session(gate), JOB) is not None, "a program is no browser"
    assert find(gate, session(gate) + FETCH % b"same-origin", JOB) is None


@pytest.mark.parametrize(
    "claims", [{"job": JOB, "share": "none"}, {"job": "f0" * 16, "tid": "config-1", "sid": ""}, {}]
)
def test_passes_of_others_open_nothing(gate: AccessGate, claims: dict[str, str]) -> None:
    text = gate.key.sign(Kind.PASS, claims, 60).encode()
    fields = FETCH % b"same-origin" + b"Cookie: prouter_pass=" + text + b"\r\n"
    assert find(gate, fields, JOB) is None
    assert find(gate, fields, JOB, key=text, control={"sandbox_shares": True}) is None


def test_a_planted_pass_beside_a_good_one_changes_nothing(gate: AccessGate) -> None:
    good = gate.key.sign(Kind.PASS, {"job": JOB, "tid": "config-1", "sid": ""}, 60)
    planted = gate.key.sign(Kind.PASS, {"job": JOB, "tid": "config-9", "sid": ""}, 60)
    for pair in (f"prouter_pass={planted}; prouter_pass={good}", f"prouter_pass={good}; prouter_pass=x"):
        found = find(gate, FETCH % b"same-origin" + f"Cookie: {pair}\r\n".encode(), JOB)
        assert found is not None
        assert (found.name, found.job, found.ambient) == ("ann", JOB, True)
