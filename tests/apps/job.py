"""An application as a job: its samples uploaded to the sandbox, started as its recipe says."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import requests

from tests.apps.environment import Environment
from tests.apps.page import Recipe
from tests.support.processes import Agent, Router

__all__ = ["AppJob"]

_SAMPLES = Path(__file__).parent / "samples"


class AppJob:
    """One job at a time on `agent`.

    Args:
        router: with a job domain.
        agent: linked to it.
        environment: has the application installed.
    """

    def __init__(self, router: Router, agent: Agent, environment: Environment) -> None:
        self._router = router
        self._agent = agent
        self._environment = environment
        self._path: str | None = None

    @property
    def path(self) -> str:
        """The job's path; only after `start`."""
        assert self._path is not None
        return self._path

    def attach(self, path: str) -> None:
        """Stand for a job that runs already."""
        self._path = path

    def start(self, recipe: Recipe) -> None:
        """Create the job, upload the samples, start it. Raises AssertionError with the router's response."""
        self._path = self._router.create(self._agent.uid, recipe.slug)
        with tempfile.TemporaryDirectory() as folder:
            self._upload(recipe, Path(folder))
        body: dict[str, Any] = {"env": {}, **recipe.start}
        body["env"] = {**self._environment.variables, **body["env"]}
        answer = self._router.post(f"{self._path}/start", body, timeout=150)
        assert answer.status_code == 200, answer.text

    def _upload(self, recipe: Recipe, folder: Path) -> None:
        samples = _SAMPLES / recipe.slug
        if not samples.is_dir():
            return
        shutil.copytree(samples, folder, dirs_exist_ok=True)
        prepare = folder / "prepare.py"
        if prepare.exists():
            subprocess.run(["python", "prepare.py"], cwd=folder, env=self._environment.variables, check=True)
        for file in folder.rglob("*"):
            if file.is_file():
                self.write(str(file.relative_to(folder)), file.read_bytes())

    def write(self, name: str, content: bytes) -> None:
        """Put a file into the sandbox."""
        answer = requests.put(f"{self._router.url}{self.path}/file/{quote(name)}", data=content, timeout=30)
        assert answer.status_code == 200, answer.text

    def has(self, name: str) -> bool:
        """Whether the sandbox has a file of this name."""
        return self._router.get(f"{self.path}/file/{quote(name)}").status_code == 200

    def read(self, name: str) -> bytes:
        """Return the contents of a file in the sandbox."""
        answer = requests.get(f"{self._router.url}{self.path}/file/{quote(name)}", timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.content

    def root(self, mode: str, domain: str) -> str:
        """The URL at which a person opens the application: below the job's path, or under its own host name."""
        if mode == "path":
            return f"{self._router.url}{self.path}/http/"
        return f"http://{self.path.split('/')[3]}.{domain}:{urlsplit(self._router.url).port}/"

    def log_end(self) -> str:
        """Return the end of the job's logs."""
        texts = []
        for stream in ("stdout", "stderr"):
            answer = self._router.get(f"{self.path}/logs/{stream}?tail=15")
            texts.append(f"-- {stream}\n{answer.text.strip()}")
        return "\n".join(texts)

    def remove(self) -> None:
        """End it and delete its sandbox."""
        if self._path is not None:
            answer = self._router.post(f"{self._path}/remove", timeout=60)
            if answer.status_code not in (200, 404):
                print(f"remove: {answer.text}", file=sys.stderr)
