"""JupyterLab as a job: created, given a notebook, started and removed with requests to the router's HTTP API."""

from __future__ import annotations

import json
import secrets
import sys
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote

from prouter.demo.stand import DemoFailed

__all__ = ["Lab"]

_TIMEOUT = 120.0
_JSON = {"Content-Type": "application/json"}
_BYTES = {"Content-Type": "application/octet-stream"}
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Ignores proxies that the environment names: the router is on this machine."""


class Lab:
    """A JupyterLab that runs as a job.

    Args:
        router: base URL of the router's HTTP API.
        agent: uid of the agent to run it on.
    """

    def __init__(self, router: str, agent: str) -> None:
        self._router = router
        self._token = secrets.token_urlsafe(24)
        created = self._post("/jobs/create", {"name": "jupyterlab", "agent": {"type": "uid", "uid": agent}})
        self._path: str = created["path"]

    @property
    def url(self) -> str:
        """URL of the server's root: the job's public prefix."""
        return f"{self._router}{self._path}/http"

    def link(self, page: str = "") -> str:
        """Return a link to one of its pages, with the token, so that no login is needed."""
        return f"{self.url}/{page}?token={quote(self._token)}"

    def upload(self, name: str, content: bytes) -> None:
        """Upload a file into the job's sandbox.

        Raises:
            DemoFailed: the router refused it.
        """
        self._send("POST", f"{self._router}{self._path}/file/{quote(name)}", content, _BYTES)

    def start(self) -> None:
        """Start the server on a port that the agent chooses, and wait until it answers.

        Raises:
            DemoFailed: it did not start.
        """
        own = "{sandbox}/.jupyter"  # The user's own settings and kernels stay untouched.
        self._post(
            f"{self._path}/start",
            {
                "args": [sys.executable, "-m", "jupyterlab", "--LanguageServerManager.autodetect=False"],
                "env": {
                    "JUPYTER_TOKEN": self._token,
                    "JUPYTER_CONFIG_DIR": own,
                    "JUPYTER_DATA_DIR": f"{own}/data",
                    "JUPYTER_RUNTIME_DIR": f"{own}/runtime",
                    "JUPYTERLAB_SETTINGS_DIR": f"{own}/settings",
                    "JUPYTERLAB_WORKSPACES_DIR": f"{own}/workspaces",
                    "IPYTHONDIR": f"{own}/ipython",
                },
                "expose": {"port": "assign", "path": "keep", "ready": "http", "preset": "jupyterlab"},
            },
        )

    def remove(self) -> None:
        """End its processes and delete its sandbox.

        Raises:
            DemoFailed: the router refused it.
        """
        self._post(f"{self._path}/remove", {})

    def get(self, page: str) -> bytes:
        """Fetch one of the server's pages.

        Raises:
            DemoFailed: it was answered with an error.
        """
        return self._send("GET", f"{self.url}/{page}", None, self._authorization)

    def post(self, page: str, body: Any) -> Any:
        """Send JSON to one of the server's addresses; return its JSON response.

        Raises:
            DemoFailed: it was answered with an error.
        """
        headers = {**_JSON, **self._authorization}
        return json.loads(self._send("POST", f"{self.url}/{page}", json.dumps(body).encode(), headers))

    # -- requests -----------------------------------------------------------------------------------------------

    @property
    def _authorization(self) -> dict[str, str]:
        return {"Authorization": f"token {self._token}"}

    def _post(self, path: str, body: Any) -> Any:
        return json.loads(self._send("POST", self._router + path, json.dumps(body).encode(), _JSON))

    def _send(self, method: str, url: str, body: bytes | None, headers: dict[str, str]) -> bytes:
        request = urllib.request.Request(url, body, headers, method=method)
        try:
            with _OPENER.open(request, timeout=_TIMEOUT) as answer:
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace").strip()
            raise DemoFailed(f"{method} {url} was answered with {error.code}: {said}") from error
        except OSError as error:
            raise DemoFailed(f"{method} {url} failed: {error}") from error
