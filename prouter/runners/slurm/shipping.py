"""The code for nodes: the modules that the node's program needs, copied into the shared directory.

A node need not have this package, nor any other. It always gets the version that its agent has.
"""

from __future__ import annotations

import compileall
import contextlib
import hashlib
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import prouter

__all__ = ["NEEDED", "batch_script", "install", "modules"]

NEEDED = (
    "errors.py",
    "texts.py",
    "keeper/*.py",
    "processes/*.py",
    "process/cores.py",
    "runners/ownership.py",
    "runners/sockets.py",
    "runners/local/listening_sockets.py",
    "runners/local/sock_diag.py",
    "runners/slurm/node/*.py",
)
"""Files of the package. They and what they import use the standard library only."""

_MAIN = "prouter/runners/slurm/node/__main__.py"


def modules() -> dict[str, bytes]:
    """All files of the copy, by path. Packages have an empty ``__init__``, because ours import more than nodes have."""
    root = Path(str(prouter.__file__)).parent
    found = {
        f"prouter/{path.relative_to(root)}": path.read_bytes() for one in NEEDED for path in sorted(root.glob(one))
    }
    folders = {parent for name in found for parent in Path(name).parents if parent != Path(".")}
    return {**found, **{f"{folder}/__init__.py": b"" for folder in folders}}


def install(shared: Path) -> Path:
    """Copy the code unless it is there; return its directory.

    Raises:
        OSError: it cannot be copied.
    """
    files = modules()
    known = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:16]
    place = shared / f"code-{known}"
    if place.exists():
        return place
    new = Path(tempfile.mkdtemp(prefix="code-", suffix=".new", dir=shared))
    try:
        for name, content in files.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_bytes(content)
        # For nodes with the agent's version of Python; others compile at their first start.
        compileall.compile_dir(new, quiet=2)
        with contextlib.suppress(FileExistsError):  # Another start of the agent was faster.
            new.rename(place)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return place


def batch_script(code: Path, job: Path, python: str | None) -> str:
    """The script that Slurm runs on the node.

    Args:
        code: what `install` has returned.
        job: the job's directory.
        python: the setting ``jobs.slurm.python``.
    """
    wanted = shlex.quote(python or os.path.realpath(sys.executable))
    return (
        "#!/bin/sh\n"
        f"python={wanted}\n"
        'command -v "$python" >/dev/null 2>&1 || python=python3\n'
        f'exec "$python" -I -S -X utf8 {shlex.quote(str(code / _MAIN))} {shlex.quote(str(job))}\n'
    )
