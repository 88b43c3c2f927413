"""Virtual environments in which a wheel is installed as from an index, in a second and without a network."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["Installed", "install"]


class Installed:
    """A virtual environment with the wheel, one of its extras, and what these require."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.site = next((folder / "lib").glob("python3*")) / "site-packages"

    def run(self, command: str, *args: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a program of its ``bin``, in a directory and with variables that know nothing of a checkout."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return subprocess.run(
            [self.folder / "bin" / command, *args],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            cwd=self.folder,
            env={**environment, "PYTHONDONTWRITEBYTECODE": "1"},
        )

    def packages(self) -> set[str]:
        """Return the canonical names of everything that is installed."""
        return {canonicalize_name(path.name.partition("-")[0]) for path in self.site.glob("*.dist-info")}


def install(wheel: Path, extra: str, folder: Path) -> Installed:
    """Have pip install a wheel with an extra into an empty virtual environment that has no index to ask.

    What the wheel's metadata requires, and nothing else, comes as links from the environment that runs the tests. pip
    refuses if that is not enough.

    Raises:
        AssertionError: pip refused.
    """
    venv.create(folder, symlinks=True)
    installed = Installed(folder)
    for needed in _required(Distribution.at(_unpacked(wheel, folder / "metadata")), extra):
        _link(needed, installed.site)
    asked = f"prouter[{extra}] @ {wheel.as_uri()}"
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", str(folder)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    done = subprocess.run(
        [*pip, "install", "--no-index", "--no-compile", asked],
        capture_output=True,
        text=True,
        check=False,
        env={**clean, "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    assert done.returncode == 0, done.stderr
    return installed


def _unpacked(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" in name]
        archive.extractall(folder, names)
    return folder / names[0].partition("/")[0]


def _required(first: Distribution, extra: str) -> Iterator[Distribution]:
    """Yield what a distribution requires with an extra, directly and through others, as it is installed here."""
    itself = canonicalize_name(first.metadata["Name"])
    todo, seen = [(first, extra)], {(itself, extra)}
    done = {itself}
    while todo:
        current, chosen = todo.pop()
        for line in current.requires or ():
            needed = Requirement(line)
            if needed.marker is not None and not needed.marker.evaluate({"extra": chosen}):
                continue
            name = canonicalize_name(needed.name)
            found = first if name == itself else distribution(name)
            for key in ((name, more) for more in ("", *needed.extras)):
                if key not in seen:
                    seen.add(key)
                    todo.append((found, key[1]))
            if name not in done:
                done.add(name)
                yield found


def _link(package: Distribution, site: Path) -> None:
    """Link every file of a package, programs excepted: those run the interpreter that they were installed for."""
    for file in package.files or ():
        if "bin" in file.parts[:-1] and file.parts[0] == "..":
            continue
        link = Path(os.path.normpath(site / file))
        source = Path(os.path.normpath(str(file.locate())))
        if link.is_relative_to(site.parents[2]) and source.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source)
