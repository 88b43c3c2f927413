"""A job's sandbox, over HTTP as users see it, and on the agent's disk."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from prouter.web.admin import responses
from tests.support.processes import Agent, Router

__all__ = ["Sandbox"]


class Sandbox:
    """A new job's sandbox.

    Attributes:
        path: the job's.
        root: the directory on disk.
        url: of the job.
    """

    def __init__(self, router: Router, agent: Agent, jobs_root: Path | None = None) -> None:
        self.router = router
        self.path = router.create(agent.uid)
        self.root = (jobs_root or agent.directory / "jobs") / self.path.split("/")[3]
        self.url = f"{router.url}{self.path}"

    def file(self, name: str, method: str = "GET", **options: Any) -> requests.Response:
        return requests.request(method, f"{self.url}/file/{name}", timeout=60, **options)

    def raw(self, head: str, body: bytes = b"") -> tuple[int, bytes]:
        """Send a request whose target is not normalised; return status and body of the response."""
        url = urlsplit(self.router.url)
        with socket.create_connection((url.hostname or "", url.port or 0), timeout=30) as client:
            client.sendall((head + "\r\nHost: localhost\r\nConnection: close\r\n\r\n").encode("latin-1") + body)
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        top, _, content = answer.partition(b"\r\n\r\n")
        return int(top.split()[1]), content

    def archive(self, query: str = "", method: str = "GET", **options: Any) -> requests.Response:
        return requests.request(method, f"{self.url}/archive{query}", timeout=120, **options)

    def names(self) -> list[str]:
        """Return the names that the sandbox's listing shows."""
        listing = self.file("").json()
        responses.Listing.model_validate(listing)
        return [entry["name"] for entry in listing["entries"]]
