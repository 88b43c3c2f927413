"""Jobs as tables and lists of fields show them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from prouter.cli.remote.durations import age, size
from prouter.cli.remote.names import short
from prouter.cli.remote.output import Column, emit
from prouter.client import JobInfo

__all__ = ["JOB_COLUMNS", "emit_jobs", "fields", "result"]

_TOLD = ("unreachable", "stopping", "frozen")
"""Phases that the state does not tell."""
_COLOURS = {"NEW": "cyan", "PENDING": "yellow", "RUNNING": "green"}


def result(info: JobInfo) -> str:
    """Return how a job ended, in a word or two: ``exit 0``, ``SIGKILL (memory)``; ``-`` while it has not."""
    if not info.ended:
        return "-"
    how = f"exit {info.exit_code}" if info.exit_code is not None else info.signal or ""
    said = {"exited": "", "signaled": ""}.get(info.reason or "", info.reason or "")
    return f"{how} ({said})" if how and said else how or said or "-"


def _state(info: JobInfo) -> str:
    """Return a job's state, with what its phase tells beyond it, such as ``NEW (queued, no. 3)``."""
    if info.phase == "queued":
        return f"{info.state} (queued{f', no. {info.position}' if info.position else ''})"
    return f"{info.state} ({info.phase})" if info.phase in _TOLD else info.state


def _queued(info: JobInfo) -> str | None:
    """Return where a job waits, and why, if it does."""
    if info.phase != "queued":
        return None
    queue = info.queue or {}
    start = queue.get("expected_start")
    told = [f"at position {info.position}" if info.position else "", str(queue.get("reason") or "")]
    told.append(f"expected to start at {start}" if start else "")
    return ", ".join(one for one in told if one) or "yes"


def _colour(info: JobInfo) -> str | None:
    if info.ended:
        return None if info.ok else "red"
    return _COLOURS.get(info.state)


JOB_COLUMNS: list[Column[JobInfo]] = [
    Column("ID", lambda info: short(info.uid)),
    Column("NAME", lambda info: info.name or "-"),
    Column("STATE", _state, _colour),
    Column("AGENT", lambda info: str(info.agent.get("name") or info.agent.get("uid") or "-")),
    Column("OWNER", lambda info: info.owner or "-"),
    Column("AGE", lambda info: age(info.created_at)),
    Column("RESULT", result, _colour),
]


def emit_jobs(infos: Iterable[JobInfo], kind: str | None = None) -> None:
    """Print jobs in the form that ``-o`` names."""
    emit(infos, JOB_COLUMNS, raw=lambda info: info.raw, name=lambda info: info.uid, kind=kind)


def fields(info: JobInfo) -> dict[str, str]:
    """Return what people want to know of one job, by name."""
    agent = info.agent
    shown: dict[str, str | None] = {
        "id": info.uid,
        "name": info.name,
        "state": info.state if info.confirmed else f"{info.state} (not confirmed: the agent has not come back yet)",
        "queued": _queued(info),
        "result": result(info) if info.ended else None,
        "error": info.error,
        "command": shlex.join(info.args) + (" …" if info.args_shortened else "") if info.args else None,
        "agent": " ".join(str(one) for one in (agent.get("name"), f"({agent.get('uid')})") if one) if agent else None,
        "owner": info.owner,
        "created": _moment(info.created_at),
        "started": _moment(info.started_at),
        "finished": _moment(info.finished_at),
        "cpu": None if info.cpu_seconds is None else f"{info.cpu_seconds:.1f} s",
        "memory": None if info.rss_bytes is None else size(info.rss_bytes),
        "ports": ", ".join(map(str, info.ports)) or None,
        "url": info.url,
        "path": info.path,
    }
    return {name: value for name, value in shown.items() if value}


def _moment(moment: object) -> str | None:
    from datetime import datetime

    if not isinstance(moment, datetime):
        return None
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S} ({age(moment)} ago)"
