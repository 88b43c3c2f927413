"""A router that asks for tokens, with an agent and a token of each role."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import requests

from prouter.access.roles import Role
from prouter.access.token_file import TokenFile
from tests.support.processes import Agent, Router, start_agent, start_router

__all__ = ["ROLES", "WORKERS", "Guarded", "new_token", "token_command"]

ROLES = ("viewer", "user", "operator", "admin")
WORKERS = 2


def token_command(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "prouter", "token", *arguments, "--set", f"state.dir={str(directory / 'state')!r}"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def new_token(directory: Path, name: str, role: str) -> dict[str, Any]:
    """A token made on the command line, with its text."""
    done = token_command(directory, "create", name, "--role", role, "--json")
    assert done.returncode == 0, done.stderr
    made: dict[str, Any] = json.loads(done.stdout)
    return made


class Guarded:
    """A router that asks for tokens, an agent, and one token of each role.

    Args:
        directory: for both.
        sets: keys of the router's configuration.

    Attributes:
        tokens: their texts, by role; ``other`` is another user's.
        connection: uid of the agent's connection.
        texts: of all tokens ever made: none of them may be seen anywhere.
    """

    def __init__(self, directory: Path, **sets: Any) -> None:
        self.directory = directory / "router"
        self.directory.mkdir()
        (self.directory / "state").mkdir(mode=0o700)
        self.tokens = {role: self.make(role, role)["token"] for role in ROLES}
        self.tokens["other"] = self.make("other", "user")["token"]
        self.texts = list(self.tokens.values())
        self.router: Router = start_router(self.directory, workers=WORKERS, **{"control.hold": 0.3, **sets})
        self.agent: Agent = start_agent(directory / "agent", self.router)
        self.connection: str = self.ask("viewer", "GET", "/connections").json()["connections"][0]["uid"]

    def make(self, name: str, role: str) -> dict[str, Any]:
        """A new token, with its text; without the command's process, which takes half a second."""
        token, text = TokenFile(self.directory / "state").issue(
            name=name, role=Role.of(role), now=time.time(), lifetime=None
        )
        return {"id": token.id, "name": name, "role": role, "token": text}

    def ask(self, who: str | None, method: str, path: str, **options: Any) -> requests.Response:
        """Send a request as somebody; `who` is a role, a token's text, or None."""
        headers = dict(options.pop("headers", {}))
        if who is not None:
            headers["Authorization"] = f"Bearer {self.tokens.get(who, who)}"
        return requests.request(method, self.router.url + path, headers=headers, timeout=30, **options)

    def job(self, who: str, *args: str, **start: Any) -> str:
        """A new job of somebody, started if there are arguments; its path."""
        body = {"name": "a job", "agent": {"type": "uid", "uid": self.agent.uid}}
        made = self.ask(who, "POST", "/jobs/create", json=body)
        assert made.status_code == 200, made.text
        path: str = made.json()["path"]
        if args:
            started = self.ask(who, "POST", f"{path}/start", json={"args": list(args), "env": {}, **start})
            assert started.status_code == 200, started.text
        return path

    def stop(self) -> None:
        self.agent.stop()
        self.router.stop()
