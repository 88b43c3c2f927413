"""Installs the applications of docs/apps.md, by pip into a virtual environment, by npm into a folder, by apt."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.apps.page import Recipe

__all__ = ["Environment"]

_BUILT = ["node-pty", "esbuild"]
"""npm packages whose install scripts have to run: they build or place a binary."""


class Environment:
    """Where the applications are installed; kept between runs.

    Args:
        folder: for the virtual environment and npm's packages; made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._venv = folder / "venv"
        self._npm = folder / "npm"

    @property
    def variables(self) -> dict[str, str]:
        """What jobs and preparations get to find the applications: commands first in PATH, npm's modules."""
        commands = [self._venv / "bin", self._npm / "node_modules" / ".bin"]
        return {
            "PATH": ":".join([*map(str, commands), os.environ["PATH"]]),
            "NODE_PATH": str(self._npm / "node_modules"),
        }

    def install(self, recipes: Iterable[Recipe]) -> None:
        """Install what is not there yet.

        Raises:
            CalledProcessError: a package could not be installed; the installer's own output says why.
        """
        wanted: dict[str, set[str]] = {}
        for recipe in recipes:
            for kind, names in recipe.packages.items():
                wanted.setdefault(kind, set()).update(names)
        self._folder.mkdir(parents=True, exist_ok=True)
        for kind, asked in wanted.items():
            stamp = self._folder / f"installed-{kind}"
            have = set(stamp.read_text().split()) if stamp.exists() else set()
            if missing := sorted(asked - have):
                print(f"installing with {kind}: {' '.join(missing)}", flush=True)
                {"pip": self._from_pypi, "npm": self._from_npm, "apt": self._from_debian}[kind](missing)
                stamp.write_text("\n".join(sorted(have | asked)) + "\n")

    def _from_pypi(self, names: list[str]) -> None:
        if not self._venv.exists():
            subprocess.run([sys.executable, "-m", "venv", str(self._venv)], check=True)
        pip = [str(self._venv / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", *names], check=True)

    def _from_npm(self, names: list[str]) -> None:
        npm = ["npm", "--prefix", str(self._npm), "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run([*npm, "install", "--ignore-scripts", *names], check=True, stdin=subprocess.DEVNULL)
        built = [name for name in _BUILT if (self._npm / "node_modules" / name).is_dir()]
        if built:
            subprocess.run([*npm, "rebuild", "--ignore-scripts=false", *built], check=True, stdin=subprocess.DEVNULL)

    def _from_debian(self, names: list[str]) -> None:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "-qq", "update"], check=True, env=environment)
        install = ["apt-get", "-qq", "-y", "install", "--no-install-recommends", *names]
        subprocess.run(install, check=True, env=environment, stdout=subprocess.DEVNULL)
