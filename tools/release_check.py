"""Check that the checked-out commit can be released, and build its wheel and sdist into ``dist/``.

Every reason against it is printed; the exit status is then 1. docs/releasing.md has the whole recipe.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

from prouter import __version__
from tools.packages import BuildFailed, build

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
NEEDED = (
    "prouter/py.typed",
    "prouter/web/admin/static/dashboard.html",
    "prouter/keeper/__main__.py",
    "prouter/demo/welcome.ipynb",
)
"""Files that the wheel must have: package data, a program that is started by its path."""


def main() -> int:
    """Print what is wrong and return the exit status."""
    faults = [*version_faults(), *_repository()]
    if not faults:
        faults = [*_packages()]
    for fault in faults:
        print(f"not ready: {fault}", file=sys.stderr)
    if not faults:
        built = ", ".join(sorted(path.name for path in DIST.iterdir()))
        print(f"{__version__} is ready: {built}; next: docs/releasing.md")
    return int(bool(faults))


def version_faults() -> Iterator[str]:
    """Check the version and the changelog's first heading."""
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", __version__):
        yield f"prouter/__init__.py: {__version__!r} is no released version; write MAJOR.MINOR.PATCH"
    heading = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    if heading is None or not re.fullmatch(rf"{re.escape(__version__)} \(\d{{4}}-\d\d-\d\d\)", heading[1]):
        found = heading[1] if heading else "nothing"
        yield f"CHANGELOG.md: the first heading is '{found}'; write '{__version__} (YYYY-MM-DD)'"


def _repository() -> Iterator[str]:
    """Check that everything is committed and the tag is free, or already on this commit."""
    if changed := _git("status", "--porcelain"):
        yield f"uncommitted changes: {' '.join(changed.split()[1::2])}; commit or remove them"
    tag = f"v{__version__}"
    if _git("tag", "--list", tag) and _git("rev-list", "-n", "1", tag) != _git("rev-parse", "HEAD"):
        yield f"the tag {tag} is on another commit; raise __version__ in prouter/__init__.py"


def _packages() -> Iterator[str]:
    """Build wheel and sdist, look into both, and start the command from the wheel."""
    shutil.rmtree(DIST, ignore_errors=True)
    try:
        wheel, sdist = build(ROOT, DIST)
    except BuildFailed as error:
        yield str(error)
        return
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    yield from (f"{wheel.name} has no {name}" for name in NEEDED if name not in names)
    yield from (
        f"{wheel.name} has {name}, which is no part of the package" for name in names if name.startswith("tests/")
    )
    with tarfile.open(sdist) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    yield from (
        f"{sdist.name} has no {name}" for name in ("README.md", "LICENSE", "pyproject.toml") if name not in packed
    )
    yield from _installed(wheel)


def _installed(wheel: Path) -> Iterator[str]:
    """Install the wheel with the lock's versions into an empty virtual environment, and ask it for its version."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        installation = (python, "-m", "pip", "--quiet", "install", "-c", ROOT / "requirements.lock", wheel)
        done = subprocess.run(installation, capture_output=True, text=True, check=False)
        if done.returncode:
            yield f"{wheel.name} cannot be installed:\n{done.stderr[-2000:]}"
            return
        command = (python.with_name("prouter"), "--version")
        said = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        if said.stdout.strip() != f"prouter, version {__version__}":
            yield f"'prouter --version' from {wheel.name} says {said.stdout or said.stderr!r}"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    raise SystemExit(main())
