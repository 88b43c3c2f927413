"""``prouter ls``: lists files of a job."""

from __future__ import annotations

import stat
from collections.abc import Callable
from datetime import datetime

import click

from prouter.cli.remote.command import OutputCommand
from prouter.cli.remote.completion import complete_job_paths
from prouter.cli.remote.connection import connect
from prouter.cli.remote.durations import size
from prouter.cli.remote.names import find_job
from prouter.cli.remote.output import Column, emit
from prouter.client import Entry

__all__ = ["command"]

_KINDS = {"dir": stat.S_IFDIR, "link": stat.S_IFLNK, "file": stat.S_IFREG}


def _mode(entry: Entry) -> str:
    return stat.filemode(_KINDS.get(entry.type, stat.S_IFSOCK) | entry.mode)


def _columns(name: Callable[[Entry], str]) -> list[Column[Entry]]:
    return [
        Column("MODE", _mode),
        Column("SIZE", lambda entry: size(entry.size) if entry.type != "dir" else "-"),
        Column("MODIFIED", lambda entry: f"{datetime.fromtimestamp(entry.mtime).astimezone():%Y-%m-%d %H:%M}"),
        Column("NAME", name, lambda entry: {"dir": "blue", "link": "cyan"}.get(entry.type)),
    ]


@click.command("ls", cls=OutputCommand)
@click.argument("place", metavar="JOB[:PATH]", shell_complete=complete_job_paths)
@click.option("-r", "-R", "--recursive", is_flag=True, help="Also what is in the directories below.")
def command(place: str, recursive: bool) -> None:
    """List a directory of a job's sandbox.

    \b
    Examples:
      prouter ls build
      prouter ls -r build:results -o jsonl
    """
    job, _, path = place.partition(":") if "://" not in place else (place, "", "")
    with connect() as router:
        entries = find_job(router, job).files(path or ".", recursive=recursive)

    def shown(entry: Entry) -> str:
        return (entry.path if recursive else entry.name) + ("/" if entry.type == "dir" else "")

    emit(
        sorted(entries, key=lambda entry: entry.path),
        _columns(shown),
        raw=lambda entry: {**entry.raw, "path": entry.path},
        name=lambda entry: entry.path,
    )
