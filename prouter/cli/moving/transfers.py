"""Copies between this machine and a job's sandbox, with the rules of ``cp -r``."""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from prouter.cli.moving.progress import progress_bar
from prouter.cli.remote.exits import Exit
from prouter.cli.remote.failures import Failure
from prouter.cli.remote.terminals import write_all
from prouter.client import Job, NotFound, RouterError, Transferred
from prouter.client.core.paths import joined

__all__ = ["Place", "from_job", "place_of", "to_job"]

_CHUNK = 256 * 1024
_AGENTS = ".pagent.*"
"""The agent's own files at the root of a sandbox."""


@dataclass(frozen=True)
class Place:
    """One end of a copy.

    Attributes:
        job: what names the job; None for this machine.
        path: in the sandbox, or here.
    """

    job: str | None
    path: str


def place_of(text: str) -> Place:
    """Return what ``JOB:PATH``, or a local path, means. A slash before the colon makes a local path."""
    job, colon, path = text.partition(":")
    if not colon or "/" in job or not job or job.startswith(("~", ".")):
        return Place(None, text)
    return Place(job, path)


def to_job(job: Job, local: str, remote: str) -> Transferred:
    """Copy a local file, directory, or stdin to a job.

    Raises:
        Failure: there is nothing there, or a file is in the way.
    """
    if local == "-":
        return _from_stdin(job, remote)
    contents = local.endswith("/.") or local in (".", "..")
    name = os.path.basename(os.path.abspath(local))
    if not os.path.isdir(local):
        if not os.path.exists(local):
            raise Failure(f"{local}: there is no such file here", Exit.NOT_FOUND)
        if not remote or remote.endswith("/") or _kind(job, remote) == "dir":
            remote = joined(remote.rstrip("/") or ".", name)
        return _upload(job, local, remote)
    kind = _kind(job, remote)
    if kind == "file":
        raise Failure(f"'{remote}' is a file in the job: a directory cannot become a part of it")
    if kind == "dir" and not contents:
        remote = joined(remote.rstrip("/") or ".", name)
    return _upload(job, local, f"{remote.rstrip('/')}/" if remote else ".")


def _upload(job: Job, local: str, remote: str) -> Transferred:
    with progress_bar(f"upload {local}") as progress:
        return job.upload(local, remote, progress=progress)


def _from_stdin(job: Job, remote: str) -> Transferred:
    if not remote or remote.endswith("/"):
        raise Failure("stdin needs a name in the job: prouter cp - JOB:NAME", Exit.USAGE)
    if sys.stdin.isatty():
        raise Failure("stdin is a terminal: pipe into this command, such as: tar c . | prouter cp - JOB:all.tar", 2)
    with tempfile.NamedTemporaryFile(prefix="prouter-cp-") as spool:  # so that a broken transfer can begin again
        shutil.copyfileobj(sys.stdin.buffer, spool, _CHUNK)
        spool.flush()
        os.fchmod(spool.fileno(), 0o644)
        return _upload(job, spool.name, remote)


def from_job(job: Job, remote: str, local: str) -> Transferred:
    """Copy a file or directory of a job to this machine, or to stdout.

    Raises:
        Failure: there is nothing there, or a file is in the way.
    """
    kind = _kind(job, remote)
    if kind is None:
        raise Failure(f"there is no '{remote}' in the job; 'prouter ls {job.uid[:12]}' lists its files", Exit.NOT_FOUND)
    if local == "-":
        return _to_stdout(job, remote, kind)
    name = os.path.basename(remote.rstrip("/")) if remote.rstrip("/") not in ("", ".") else ""
    if name == "..":
        raise Failure(f"'{remote}' leads out of where it is: name the directory itself", Exit.USAGE)
    contents = remote.endswith("/.") or not name
    if kind == "file":
        if local.endswith("/") and not os.path.isdir(local):
            raise Failure(f"{local}: there is no such directory here", Exit.NOT_FOUND)
        return _download(job, remote, os.path.join(local, name) if os.path.isdir(local) else local)
    if os.path.exists(local) and not os.path.isdir(local):
        raise Failure(f"{local} is a file: a directory cannot become a part of it")
    target = os.path.join(local, name) if os.path.isdir(local) and not contents else local
    Path(target).mkdir(parents=True, exist_ok=True)
    return _download(job, remote.removesuffix("/.") or ".", target)


def _download(job: Job, remote: str, local: str) -> Transferred:
    whole = remote in ("", ".")
    with progress_bar(f"download {remote}") as progress:
        return job.download(remote or ".", local, exclude=[_AGENTS] if whole else [], progress=progress)


def _to_stdout(job: Job, remote: str, kind: str) -> Transferred:
    sys.stdout.flush()
    with tempfile.TemporaryDirectory(prefix="prouter-cp-") as directory:  # what comes out is whole, or nothing
        spool = os.path.join(directory, "file")
        if kind == "file":
            done = _download(job, remote, spool)
        else:
            tree = os.path.join(directory, "tree")
            os.mkdir(tree)
            done = _download(job, remote.removesuffix("/.") or ".", tree)
            with tarfile.open(spool, "w") as archive:
                archive.add(tree, arcname=".")
        with open(spool, "rb") as file:
            while data := file.read(_CHUNK):
                write_all(1, data)
    return done


def _kind(job: Job, path: str) -> str | None:
    """Return ``dir`` or ``file`` for what is at a path of the sandbox, None if there is nothing."""
    if path.rstrip("/") in ("", "."):
        return "dir"
    try:
        job.files(path)
    except NotFound as error:
        if error.code == "not_found" and job.info().state != "CLOSED":
            return None
        raise
    except RouterError as error:
        if error.code != "not_a_directory":
            raise
        return "file"
    return "dir"
