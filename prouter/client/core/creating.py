"""What makes a job: which agent is asked for, its creation, and the body of its start."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from prouter.client.core.errors import RouterError
from prouter.client.core.flow import Flow
from prouter.client.core.jobs import CLEANUP, discard
from prouter.client.core.models import JobInfo
from prouter.client.core.requests import post
from prouter.client.core.retries import LEAST, Attempts, Context, call_json

__all__ = ["AgentChoice", "Creation", "choice", "start_body"]

AgentChoice = str | Sequence[str] | Mapping[str, Any] | None
"""Which agent: a uid; several of them; the API's object with ``type``; None for any."""


def choice(
    agent: AgentChoice = None,
    where: Mapping[str, Any] | None = None,
    require: Mapping[str, Any] | None = None,
    resources: Mapping[str, float] | None = None,
    strategy: str | None = None,
) -> dict[str, Any]:
    """Return the API's ``agent`` of a choice.

    Raises:
        ValueError: an agent is given, and what is for any agent.
    """
    wanted: dict[str, Any] = {"properties": where, "require": require, "resources": resources, "strategy": strategy}
    given = {name: value for name, value in wanted.items() if value is not None}
    if agent is None:
        return {"type": "any", **{name: dict(value) if name != "strategy" else value for name, value in given.items()}}
    if given:
        names = ", ".join({"properties": "where"}.get(name, name) for name in given)
        raise ValueError(f"give either agent or {names}: an agent, or what any agent must have")
    if isinstance(agent, str):
        return {"type": "uid", "uid": agent}
    return dict(agent) if isinstance(agent, Mapping) else {"type": "select", "uids": list(agent)}


class Creation:
    """The creation of one job, empty or of a template; exactly one, however often the connection breaks.

    Args:
        name: for people.
        agent: see `choice`; any by default.
        template: name of a template that it must have; None for an empty job.
        queue: seconds for which the job may wait until an agent has space for it; None for not at all.
    """

    def __init__(
        self,
        context: Context,
        name: str | None = None,
        agent: Mapping[str, Any] | None = None,
        template: str | None = None,
        queue: float | None = None,
    ) -> None:
        self._context = context
        self._key = context.new_key()
        self._body: dict[str, Any] = {"name": name or "", "agent": agent or choice()}
        if template is not None:
            self._body["template"] = template
        if queue is not None:
            self._body["queue"] = {"timeout": queue}
        self._attempts = Attempts(context, context.retry_for, least=LEAST)

    def carry_out(self) -> Flow[JobInfo]:
        """Create the job.

        Raises:
            NoAgent: no agent can take it.
        """
        return (yield from self._ask(None, self._attempts))

    def undo(self) -> Flow[None]:
        """Remove the job, if that is possible soon, after its creation was interrupted: nobody else knows it.

        Only the key finds a job whose info did not arrive, so it is asked for once more.
        """
        if not (self._attempts.running or self._attempts.ambiguous):
            return
        with suppress(RouterError):
            made = yield from self._ask(CLEANUP, Attempts(self._context, CLEANUP if self._context.reached else 0.0))
            yield from discard(self._context, made.path)

    def _ask(self, silence: float | None, attempts: Attempts) -> Flow[JobInfo]:
        request = post("/jobs/create", self._body, key=self._key, silence=silence)
        return JobInfo.of((yield from call_json(self._context, request, placing=True, attempts=attempts)))


def start_body(
    args: Sequence[str | os.PathLike[str]],
    *,
    template: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    expose: str | Mapping[str, Any] | None = None,
    preset: str | None = None,
    limits: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the body of a start. Without `expose` and `preset` the job has no server.

    Args:
        template: name of a template of the agent, instead of everything but `limits`.
        expose: the API's object, or only its ``port``: ``assign``, ``detect``, ``unix`` or ``notify``.
        options: further keys of the body.

    Raises:
        TypeError: `args` is one text instead of a list.
        ValueError: there is neither `args` nor a template, or both.
    """
    if template is not None:
        if args or env or cwd or expose or preset or options:
            raise ValueError("a template says how the job is started: give it alone, or with limits={'timeout': …}")
        return {"template": template, **({"limits": dict(limits)} if limits is not None else {})}
    if not args:
        raise ValueError("give args, such as ['python3', 'main.py'], or the name of a template")
    if isinstance(args, str):
        raise TypeError("args is a list, such as ['python3', 'main.py']; for a shell: ['sh', '-c', '…']")
    exposed = {"port": expose} if isinstance(expose, str) else dict(expose or {})
    if preset is not None:
        exposed["preset"] = preset
    body: dict[str, Any] = {"args": [os.fspath(arg) for arg in args], "env": dict(env or {})}
    if exposed:
        body["expose"] = exposed
    else:
        body["port_expected_count"] = 0
    if cwd is not None:
        body["cwd"] = cwd
    if limits is not None:
        body["limits"] = dict(limits)
    return {**body, **(options or {})}
