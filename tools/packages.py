"""Build the wheel and the sdist, byte for byte the same from the same commit.

    python tools/packages.py FOLDER

Times in both files are ``SOURCE_DATE_EPOCH``, or else that of the last commit. The build happens in a copy of what
belongs to the packages, so that nothing left over from earlier builds gets in.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONTENTS = ("LICENSE", "README.md", "pyproject.toml", "prouter")
"""What the packages are made of."""
_OLDEST = 315532800
"""1980-01-01, the first time that a zip archive can express."""


def main() -> int:
    """Build both into the folder of the command line, and print their paths."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        built = build(ROOT, Path(sys.argv[1]))
    except BuildFailed as error:
        print(error, file=sys.stderr)
        return 1
    print(*built, sep="\n")
    return 0


class BuildFailed(Exception):
    """The build backend failed; the text is its output."""


def build(source: Path, target: Path) -> tuple[Path, Path]:
    """Build the packages of a source tree; return the paths of wheel and sdist.

    Args:
        source: a checkout, or an unpacked sdist.
        target: the folder to put them into.

    Raises:
        BuildFailed: the build backend failed.
    """
    target.mkdir(parents=True, exist_ok=True)
    epoch = source_date(source)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in CONTENTS:
            _copy(source / name, copy / name)
        wheel = target / _backend("build_wheel", copy, target, epoch)
        shutil.rmtree(copy / "build", ignore_errors=True)
        sdist = target / _backend("build_sdist", copy, target, epoch)
    _normalize(sdist, epoch)
    return wheel, sdist


def source_date(source: Path) -> int:
    """Return the time of everything that is built, in seconds since 1970."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    asked = ("git", "-C", source, "log", "-1", "--format=%ct")
    git = subprocess.run(asked, capture_output=True, text=True, check=False) if (source / ".git").exists() else None
    return int(git.stdout) if git is not None and git.returncode == 0 and git.stdout else _OLDEST


def _copy(source: Path, target: Path) -> None:
    """Copy a file or a folder; permissions depend on nobody's umask."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    else:
        shutil.copy2(source, target)
    for path in (target, *target.rglob("*")):
        executable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
        path.chmod(0o755 if executable else 0o644)


def _backend(hook: str, source: Path, target: Path, epoch: int) -> str:
    """Call a hook of the build backend (PEP 517) as pip would; return the name of the file that it made."""
    code = f"import sys; from setuptools.build_meta import {hook}; print({hook}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, target.resolve()],
        capture_output=True,
        text=True,
        check=False,
        cwd=source,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch)},
    )
    if done.returncode:
        raise BuildFailed(f"the build failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout.split()[-1]


def _normalize(sdist: Path, epoch: int) -> None:
    """Give all entries of an sdist one time, one owner and a fixed order: setuptools takes those of the machine."""
    packed = io.BytesIO()
    with tarfile.open(sdist) as old, tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new:
        for entry in sorted(old.getmembers(), key=lambda entry: entry.name):
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = epoch, 0, 0, "", ""
            entry.mode = 0o755 if entry.isdir() or entry.mode & stat.S_IXUSR else 0o644
            entry.pax_headers = {}
            new.addfile(entry, old.extractfile(entry) if entry.isfile() else None)
    sdist.write_bytes(gzip.compress(packed.getvalue(), mtime=epoch))


if __name__ == "__main__":
    raise SystemExit(main())
