"""Completion of names in shells: jobs, agents and contexts. It never prints an error, and never waits for long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import click
from click.shell_completion import CompletionItem

from prouter.cli.remote import contexts
from prouter.cli.remote.connection import chosen
from prouter.client import Router

__all__ = ["complete_agents", "complete_contexts", "complete_job_paths", "complete_jobs"]

_PATIENCE = 2.0
"""Seconds that a shell waits for names, at most."""


def complete_jobs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return jobs whose name or uid begins so: unique names, and uids with the name as explanation."""
    return _asked(ctx, lambda router: _job_items(router, incomplete))


def complete_job_paths(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return ``JOB:`` for what begins so, and local files otherwise: arguments of ``cp``."""
    if "/" in incomplete or incomplete.startswith((".", "~")):
        return [CompletionItem(incomplete, type="file")]
    found = _asked(ctx, lambda router: _job_items(router, incomplete))
    return [CompletionItem(f"{item.value}:", help=item.help) for item in found] or [
        CompletionItem(incomplete, type="file")
    ]


def complete_agents(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return agents whose name or uid begins so."""

    def items(router: Router) -> list[CompletionItem]:
        agents = [connection.agent for connection in router.connections()]
        return [
            CompletionItem(agent.uid, help=agent.name if _plain(agent.name) else None)
            for agent in agents
            if _fits(agent.uid, incomplete)
        ] + [
            CompletionItem(agent.name, help=agent.uid if _plain(agent.uid) else None)
            for agent in agents
            if agent.name != agent.uid and _fits(agent.name, incomplete)
        ]

    return _asked(ctx, items)


def complete_contexts(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return contexts whose name begins so."""
    with suppress(Exception):
        return [CompletionItem(name) for name in contexts.load().known if _fits(name, incomplete)]
    return []


def _job_items(router: Router, incomplete: str) -> list[CompletionItem]:
    infos = [job.latest for job in router.list()]
    names = Counter(info.name for info in infos)
    found = [
        CompletionItem(info.name, help=f"{info.state} {info.uid[:12]}")
        for info in infos
        if names[info.name] == 1 and _fits(info.name, incomplete)
    ]
    return found + [
        CompletionItem(info.uid[:12], help=f"{info.state} {info.name if _plain(info.name) else ''}".strip())
        for info in infos
        if info.uid.startswith(incomplete)
    ]


def _fits(name: str, incomplete: str) -> bool:
    return name.startswith(incomplete) and _plain(name)


def _plain(name: str) -> bool:
    """Whether a shell takes a name as one word as it is: others are left out, they could be commands."""
    return bool(name) and name[0] != "-" and all(character.isalnum() or character in "._-@+=" for character in name)


def _asked(ctx: click.Context, items: Callable[[Router], list[CompletionItem]]) -> list[CompletionItem]:
    with suppress(Exception):
        given: dict[str, Any] = {key: ctx.params.get(key) for key in ("url", "token_file", "context")}
        if given["token_file"] == "-":  # noqa: S105
            return []
        choice = chosen(given)
        verify: Any = choice.ca if choice.ca is not None else True
        with Router(choice.url, choice.token or "", timeout=_PATIENCE, retry_for=0.0, verify=verify) as router:
            return items(router)
    return []
