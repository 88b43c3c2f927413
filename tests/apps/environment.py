"""Installation of the applications of docs/apps.md: by pip into a virtual environment, by npm into a folder, by apt."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.apps.page import Recipe

__all__ = ["Environment"]

_BUILT = {
    "": ["node-pty", "esbuild", "argon2"],
    "code-server/lib/vscode": ["node-pty", "@vscode/spdlog", "native-watchdog", "@parcel/watcher"],
    "code-server/lib/vscode/extensions": [],
}
"""npm packages with parts to compile, by the package that needs them; no other may run an install script."""


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
        """Return the variables by which jobs and preparations find the applications: PATH, npm's modules."""
        commands = [self._venv / "bin", self._npm / "node_modules" / ".bin"]
        return {
            "PATH": ":".join([*map(str, commands), os.environ["PATH"]]),
            "NODE_PATH": str(self._npm / "node_modules"),
        }

    def install(self, recipes: Iterable[Recipe]) -> None:
        """Install what is missing.

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
        self._run_npm(self._npm, "install", "--ignore-scripts", *names)
        modules = self._npm / "node_modules"
        for owner, built in _BUILT.items():
            folder = modules / owner if owner else self._npm
            if owner and folder.is_dir():  # it brings a package.json of its own, for its installation to follow
                self._run_npm(folder, "install", "--ignore-scripts", "--omit=dev")
            if present := [name for name in built if (folder / "node_modules" / name).is_dir()]:
                self._run_npm(folder, "rebuild", "--ignore-scripts=false", "--build-from-source", *present)

    def _run_npm(self, folder: Path, *arguments: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        node = Path(shutil.which("node") or "node").resolve().parents[1]
        environment = {**os.environ, "npm_config_yes": "true"}  # npx may fetch node-gyp
        if (node / "include" / "node").is_dir():  # compiled with the headers of this machine, not with fetched ones
            environment["npm_config_nodedir"] = str(node)
        command = ["npm", "--prefix", str(folder), "--no-audit", "--no-fund", "--loglevel=error", *arguments]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, cwd=folder, env=environment)

    def _from_debian(self, names: list[str]) -> None:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "-qq", "update"], check=True, env=environment)
        install = ["apt-get", "-qq", "-y", "install", "--no-install-recommends", *names]
        subprocess.run(install, check=True, env=environment, stdout=subprocess.DEVNULL)
