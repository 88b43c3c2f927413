"""Jobs on an agent that gives them users of their own, for tests that root runs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from prouter.keeper.isolation import unavailable
from prouter.processes.users import missing_capabilities
from tests.support.processes import Agent, Process, Router

__all__ = ["FIRST", "UserJob", "python_for_all", "users", "why_not", "words_of_log"]

FIRST = 20000 + os.getpid() % 2000 * 20
"""First of twenty uids that no other process of the test run uses."""


def why_not() -> str | None:
    """Return why this process cannot start agents whose jobs have users of their own; None if it can."""
    if os.geteuid() != 0:
        return "only root can start jobs as other users"
    missing = missing_capabilities()
    if missing:
        return f"root lacks {', '.join(missing)} here"
    reason = unavailable()
    return f"the system lets root make no namespaces: {reason}" if reason else None


def users(count: int, skip: int = 0) -> str:
    """Return a range of uids for the setting ``jobs.user``."""
    return f"{FIRST + skip}-{FIRST + skip + count - 1}"


def python_for_all() -> str:
    """Return the path of a Python that any user may run, also where /tmp is another directory.

    Raises:
        LookupError: there is none.
    """
    for path in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        found = [Path(path), *Path(path).parents]
        if not path.startswith("/tmp/") and all(one.exists() and one.stat().st_mode & 0o001 for one in found):
            return path
    raise LookupError("there is no Python that every user may run")


def words_of_log(process: Process, key: str) -> Iterator[str]:
    """Return the values of ``key=value`` in a process's log, first to last."""
    for word in process.log.read_text().split():
        name, _, value = word.partition("=")
        if name == key:
            yield value


class UserJob:
    """A job; `root` is the agent's ``jobs.root`` if that is not in its directory.

    Attributes:
        path: its path on the router.
        sandbox: its directory.
        user: uid of the user to whom the directory belongs.
    """

    def __init__(self, router: Router, agent: Agent, root: Path | None = None) -> None:
        self.router = router
        self.path = router.create(agent.uid)
        self.uid = self.path.rpartition("/")[2]
        self.sandbox = (root or agent.directory / "jobs") / self.uid
        self.user = self.sandbox.stat().st_uid

    def python(self, code: str, *args: str, **options: Any) -> dict[str, Any]:
        """Start Python code; return the job's info."""
        if "expose" not in options:
            options.setdefault("port_expected_count", 0)
        return self.router.start(self.path, [python_for_all(), "-I", "-c", code, *args], **options)

    def ended(self) -> dict[str, Any]:
        """Wait for the end; return the job's info."""
        answer = self.router.post(f"{self.path}/wait", timeout=60)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def log(self, name: str = "stdout") -> str:
        """Return what the job has written."""
        return self.router.get(f"{self.path}/logs/{name}").text

    def output(self) -> Any:
        """Wait for the end; return the JSON that the job has printed."""
        self.ended()
        assert not self.log("stderr"), self.log("stderr")
        return json.loads(self.log())

    def request(self, method: str, below: str, **options: Any) -> requests.Response:
        """Send a request below the job's path."""
        return requests.request(method, f"{self.router.url}{self.path}{below}", timeout=60, **options)

    def remove(self) -> None:
        """Remove the job."""
        assert self.router.post(f"{self.path}/remove").status_code == 200
