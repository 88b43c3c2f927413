"""The API held to its own OpenAPI document: schemathesis makes requests that fit it, and such that do not.

Each request comes from the holder of a token of some role, or from nobody. What comes back must be one of the
documented responses, in the documented form; a request that does not fit the document must not be carried out.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from tests.support.processes import Agent, Router, start_agent, start_router

__all__ = ["DocumentedApi"]

ROLES = ("viewer", "user", "operator", "admin")
_STREAMS = "GET /events"
"""Its responses have no end."""
_SHUTDOWN = "POST /shutdown"
_CHECKS: Any = [
    checks.status_code_conformance, checks.content_type_conformance, checks.response_headers_conformance,
    checks.response_schema_conformance,
]  # fmt: skip
_TIMEOUT = 30.0


class DocumentedApi:
    """A router of two workers with access tokens, an agent, and the operations of its document.

    Args:
        directory: for the processes.
        held: ends them.

    Attributes:
        labels: of the operations, such as ``GET /jobs``.
    """

    def __init__(self, directory: Path, held: ExitStack) -> None:
        self.router: Router = start_router(directory / "documented", control__hold=0.2, **{
            "limits.unauthenticated_per_address": 0,
        })  # fmt: skip
        held.callback(self.router.stop)
        self.agent: Agent = start_agent(directory / "documented-agent", self.router)
        held.callback(self.agent.stop)
        self._fields: dict[str, dict[str, str]] = {"nobody": {}}
        for role in ("admin", "viewer", "user", "operator"):
            made = self.router.post("/tokens", {"name": role, "role": role}, headers=self._fields.get("admin", {}))
            self._fields[role] = {"Authorization": f"Bearer {made.json()['token']}"}
        self._user = self._fields["user"]
        listed = self.router.get("/connections", headers=self._user).json()["connections"]
        self._connection: str = listed[0]["uid"]
        self._document: dict[str, Any] = self.router.get("/openapi.json", headers=self._user).json()
        results = schemathesis.openapi.from_dict(self._document).get_all_operations()
        found = [result.ok() for result in results if isinstance(result, Ok)]
        self._operations = {operation.label: operation for operation in found}
        self.labels = [label for label in self._operations if label != _STREAMS]
        self._finished = self._job()
        start = {"args": ["seq", "10"], "env": {}, "port_expected_count": 0}
        self.router.post(f"{self._finished}/start", start, headers=self._user)
        self.router.post(f"{self._finished}/wait", headers=self._user)

    def try_operation(self, label: str, number: int, examples: int) -> None:
        """Send requests for one operation.

        Args:
            label: its method and path.
            number: seed of the requests.
            examples: how many of each kind: fitting or not, for a job that exists or not.
        """
        operation = self._operations[label]
        admin = self._fields["admin"]
        self.router.post(f"/connections/{self._connection}/resume", headers=admin)  # another operation drains it
        known: dict[str, str] = {}
        if "{connection}" in operation.path:
            known["connection"] = self._connection
        if "{job}" in operation.path:
            job = self._finished if "/logs/" in operation.path else self._job()
            known["job"] = job.rpartition("/")[2]
            requests.put(f"{self.router.url}{job}/file/a", data=b"x", headers=self._user, timeout=_TIMEOUT)
        modes = [GenerationMode("positive")]
        if self._may_be_refused(label):
            modes.append(GenerationMode("negative"))
        for mode in modes:
            for given_parameters in [known, {}] if known and mode.is_positive else [known]:
                cases = operation.as_strategy(mode, path_parameters=given_parameters or None).filter(_is_quick)
                self._try(cases, number, examples)

    def _try(self, cases: st.SearchStrategy[Case[Any]], number: int, examples: int) -> None:
        @seed(number)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(cases, st.sampled_from(["nobody", *ROLES]))
        def send(case: Case[Any], who: str) -> None:
            if case.operation.label != _SHUTDOWN or who != "admin":
                self._send(case, who)

        send()

    def _send(self, case: Case[Any], who: str) -> None:
        got = case.call(base_url=self.router.url, headers=self._fields[who], timeout=_TIMEOUT)
        request = f"{who}: {case.as_curl_command()}"
        assert got.status_code != 500, request
        if who == "nobody" and self._described(case.operation.label).get("security") != []:
            assert got.status_code in (401, 429), request
        carried_out = got.status_code < 400 and not _has_empty(case)
        case.validate_response(got, checks=_CHECKS + ([checks.negative_data_rejection] if carried_out else []))

    def _job(self) -> str:
        body = {"name": "x", "agent": {"type": "uid", "uid": self.agent.uid}}
        path: str = self.router.post("/jobs/create", body, headers=self._user).json()["path"]
        return path

    def _described(self, label: str) -> dict[str, Any]:
        method, _, path = label.partition(" ")
        described: dict[str, Any] = self._document["paths"][path][method.lower()]
        return described

    def _may_be_refused(self, label: str) -> bool:
        """Whether anything about a request is described so closely that it may be wrong."""
        described = self._described(label)
        has_json = "application/json" in described.get("requestBody", {}).get("content", {})
        return has_json or any(one["in"] == "query" for one in described.get("parameters", []))


def _is_quick(case: Case[Any]) -> bool:
    """Whether a request makes the router dial no address, which takes ten seconds."""
    agent = case.body.get("agent") if isinstance(case.body, dict) else None
    return not isinstance(agent, dict) or agent.get("type") != "address"


def _has_empty(case: Case[Any]) -> bool:
    """Whether a query parameter is empty: the router takes it for one that was not sent."""
    return any(value in ("", [], [""], None) for value in (case.query or {}).values())
