"""The files of one job in the directory that agent and nodes share. Agent and node agree through them alone.

================  ======================================================================================
``record.json``   the agent's own: record and sandbox, from the job's creation on
``job.json``      what to start and the secret of this start; written before the job is submitted
``submitted``     Slurm's id, once sbatch has told it
``claim``         made once: by the node that is about to start the job, or by the agent that takes the start
                  back. Whoever makes it has decided; so no job is started twice, or after it was cancelled
``starting-…``    made once for each claim: by the node right before the job's process is, or by the agent that gives
                  the claim up, because that node was lost
``spawned.json``  the first process, once it runs
``exit.json``     how the job ended, with ``text`` instead of an exit status if it could not be started
``end.json``      the agent's own: how the job ended, once Slurm has said why
``batch.log``     what the batch script itself and Slurm wrote
================  ======================================================================================

Every file is complete or absent: it is written under another name and renamed. An exclusive creation is atomic on
network file systems too (open(2), O_EXCL), so what must be decided once is decided by one, never by the absence of a
file: a client of NFS may take a new file for absent for a minute (nfs(5), "Directory entry caching").
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from typing import Any

__all__ = [
    "AGENT",
    "CLAIM",
    "END",
    "EXIT",
    "JOB",
    "LOG",
    "NODE",
    "RECORD",
    "SPAWNED",
    "SUBMITTED",
    "UNKNOWN_NODE",
    "begin",
    "claim",
    "clear",
    "give_up",
    "read",
    "tail",
    "withdraw",
    "write",
]

RECORD = "record.json"
JOB = "job.json"
SUBMITTED = "submitted"
CLAIM = "claim"
SPAWNED = "spawned.json"
EXIT = "exit.json"
END = "end.json"
LOG = "batch.log"

AGENT = "agent.json"
"""File beside the jobs' directories: where nodes reach the agent, and its certificate."""
NODE = "node"
"""Who made a claim, if that is a node; else it was the agent."""
UNKNOWN_NODE = "?"
"""Stands for the node whose claim cannot be read yet."""

_STARTING = "starting-"
_TAIL = 4096


def write(directory: str, name: str, content: Any) -> None:
    """Write a JSON file that only this user may read.

    Raises:
        OSError: it cannot be written; what was there before stays.
    """
    path = os.path.join(directory, name)
    new = f"{path}.{os.getpid()}.new"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        # Text that is not UTF-8 (PEP 383) is carried by JSON's escapes.
        with os.fdopen(fd, "w", encoding="ascii") as file:
            json.dump(content, file, separators=(",", ":"))
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, path)
    except BaseException:
        os.unlink(new)
        raise


def read(directory: str, name: str) -> Any:
    """The content of a JSON file; None if there is none.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    try:
        # When a directory is opened, NFS asks the server whether it has changed; else another machine's new file may be
        # missing (close-to-open consistency, nfs(5)).
        place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=place)
        finally:
            os.close(place)
        with os.fdopen(fd, encoding="ascii") as file:
            return json.load(file)
    except FileNotFoundError:
        return None


def claim(directory: str, by: dict[str, Any]) -> dict[str, Any] | None:
    """Make the claim.

    Args:
        by: who makes it.

    Returns:
        None if it is made now; who made it before, as far as that can be read, if somebody did.
    """
    path = os.path.join(directory, CLAIM)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        try:
            return dict(read(directory, CLAIM) or {})
        except ValueError:
            return {NODE: UNKNOWN_NODE}  # It is being written at this moment, by a node: the agent waits for its own.
    with os.fdopen(fd, "w", encoding="ascii") as file:
        json.dump(by, file)
    return None


def begin(directory: str, mine: dict[str, Any]) -> bool:
    """Decide that the node with this claim starts the job; False if the agent has given the claim up."""
    return _decide(directory, mine)


def give_up(directory: str) -> bool:
    """Delete the claim of a node that was lost before it started the job; return whether that was so."""
    try:
        claimed = read(directory, CLAIM)
    except ValueError:
        return False  # It is being written at this moment: its node lives.
    if not claimed or not claimed.get(NODE) or not _decide(directory, claimed):
        return False
    _unlink(directory, CLAIM)
    return True


def _decide(directory: str, claimed: dict[str, Any]) -> bool:
    """Whether this process is the first to decide whether the node with this claim starts the job."""
    try:
        fd = os.open(_starting(directory, claimed), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False
    os.close(fd)
    return True


def _starting(directory: str, claimed: dict[str, Any]) -> str:
    return os.path.join(directory, f"{_STARTING}{claimed['by']}")


def withdraw(directory: str, mine: dict[str, Any]) -> None:
    """Delete the claim of a node that must not start the job, and its decision; others' are left alone."""
    _unlink(directory, os.path.basename(_starting(directory, mine)))
    claimed = read(directory, CLAIM)
    if claimed is not None and claimed.get("by") == mine["by"]:
        _unlink(directory, CLAIM)


def clear(directory: str, *, everything: bool) -> None:
    """Delete what a start has left, or the whole directory."""
    if everything:
        shutil.rmtree(directory, ignore_errors=True)
        return
    starting = [name for name in os.listdir(directory) if name.startswith(_STARTING)]
    for name in (JOB, SUBMITTED, CLAIM, *starting, SPAWNED, EXIT, END, LOG):
        _unlink(directory, name)


def _unlink(directory: str, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(directory, name))


def tail(directory: str) -> str:
    """The end of what the batch script and Slurm wrote."""
    try:
        with open(os.path.join(directory, LOG), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            return file.read().decode("utf-8", "replace").strip()
    except OSError:
        return ""
