"""Jobs and agents by what people type: uids, beginnings of uids, names where these are unique."""

from __future__ import annotations

from urllib.parse import urlsplit

from prouter.cli.remote.exits import Exit
from prouter.cli.remote.failures import Failure
from prouter.client import Connection, Job, Router
from prouter.client.core.paths import job_path

__all__ = ["find_agent", "find_job", "find_jobs", "short"]

_SHOWN = 8
SHORT_UID = 12
"""Characters of a uid that tables show."""


def short(uid: str) -> str:
    """Return the beginning of a uid, for tables; a uid that somebody chose stays whole."""
    return uid[:SHORT_UID] if len(uid) == 32 else uid


def find_job(router: Router, text: str) -> Job:
    """Return the one job that is meant by its uid, the beginning of it, its name, its path or its URL.

    Raises:
        Failure: there is none, or more than one; the text lists them.
    """
    return find_jobs(router, [text])[0]


def find_jobs(router: Router, texts: list[str]) -> list[Job]:
    """Return the job for each text; the router is asked for its list once. See `find_job`."""
    known: list[Job] | None = None
    found = []
    for text in texts:
        if job_path(text) is not None:
            found.append(_by_path(router, text))
            continue
        known = known if known is not None else list(router.list())
        found.append(_one(text, known))
    return found


def _by_path(router: Router, text: str) -> Job:
    if "://" in text and urlsplit(text)[:2] != urlsplit(router.url)[:2]:
        raise Failure(f"{text} is a job of another router than {router.url}: use --url or --context", Exit.USAGE)
    return router.job(text)


def _one(text: str, known: list[Job]) -> Job:
    exact = [job for job in known if job.uid == text]
    matching = exact or [job for job in known if job.name == text or (text and job.uid.startswith(text))]
    if not matching:
        raise Failure(f"there is no job '{text}'; 'prouter ps -a' lists the jobs", Exit.NOT_FOUND)
    if len(matching) > 1:
        listed = ", ".join(f"{job.uid} ({job.name}, {job.state})" for job in matching[:_SHOWN])
        more = f" and {len(matching) - _SHOWN} more" if len(matching) > _SHOWN else ""
        raise Failure(f"'{text}' means {len(matching)} jobs: {listed}{more}; give more of the uid", Exit.NOT_FOUND)
    return matching[0]


def find_agent(router: Router, text: str) -> Connection:
    """Return the connection of the one agent that is meant by its uid, the beginning of it, or its name.

    Raises:
        Failure: there is none, or more than one; the text lists them.
    """
    known = router.connections()
    exact = [one for one in known if text in (one.agent.uid, one.uid)]
    matching = exact or [one for one in known if one.agent.name == text or (text and one.agent.uid.startswith(text))]
    if not matching:
        connected = ", ".join(one.agent.uid for one in known[:_SHOWN]) or "none"
        raise Failure(f"agent '{text}' is not connected; connected agents: {connected}", Exit.NOT_FOUND)
    if len(matching) > 1:
        listed = ", ".join(f"{one.agent.uid} ({one.agent.name})" for one in matching[:_SHOWN])
        raise Failure(f"'{text}' means {len(matching)} agents: {listed}; give more of the uid", Exit.NOT_FOUND)
    return matching[0]
