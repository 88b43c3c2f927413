"""What `prouter run` is asked to do."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from prouter.cli.remote.exits import Exit
from prouter.cli.remote.failures import Failure
from prouter.client import Router

__all__ = ["Plan", "exposed", "properties", "variables", "where_of"]

PORTS = ("notify", "assign", "detect", "unix")


@dataclass(frozen=True)
class Plan:
    """A job that is to be run.

    Attributes:
        args: program and arguments; none with a template.
        template: name of a template of agents, or None.
        agent: uid of an agent, or None.
        where: properties that the agent must have, or None.
        require, resources, strategy: what else is asked of an agent (`Router.run`), or None.
        queue: seconds for which it may wait for an agent, or None.
        uploads: local files, and directories whose contents go into the sandbox.
        downloads: masks of files that are fetched at the end.
        into: local directory that gets them.
        options: further keys of the start (`Job.start`).
        port: the number of the port that the job was promised to listen on, or None.
        grace: seconds between SIGTERM and SIGKILL.
        wait: seconds after which a detached run leaves the job, though it is still queued or starting, or None.
        keep: whether the job stays at the end.
        detach: whether it goes on without this command.
        browse: whether its page is opened in a browser.
    """

    args: Sequence[str]
    name: str
    template: str | None = None
    agent: str | None = None
    where: Mapping[str, Any] | None = None
    require: Mapping[str, Any] | None = None
    resources: Mapping[str, float] | None = None
    strategy: str | None = None
    queue: float | None = None
    uploads: Sequence[str] = ()
    downloads: Sequence[str] = ()
    into: str = "."
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    expose: Mapping[str, Any] | None = None
    port: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, Any] | None = None
    grace: float | None = None
    wait: float | None = None
    keep: bool = False
    detach: bool = False
    browse: bool = False


def variables(items: Sequence[str]) -> dict[str, str]:
    """Return variables from ``K=V``, and from ``K``, whose value is that of this process.

    Raises:
        click.BadParameter: there is no such variable.
    """
    found = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not name:
            raise click.BadParameter(f"{item!r} is not NAME=VALUE", param_hint="--env")
        if not equals:
            if name not in os.environ:
                raise click.BadParameter(f"there is no variable {name} here to pass on", param_hint="--env")
            value = os.environ[name]
        found[name] = value
    return found


def exposed(port: str | None, preset: str | None) -> tuple[dict[str, Any] | None, int | None]:
    """Return the API's ``expose``, and the port's number if one is given.

    Raises:
        click.BadParameter: it is neither a mode nor a port.
    """
    found: dict[str, Any] = {"preset": preset} if preset else {}
    number = None
    if port is not None and port not in PORTS:
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise click.BadParameter(f"{port!r} is neither {', '.join(PORTS)} nor a number", param_hint="--port")
        number = int(port)
    if port is not None:
        found["port"] = port if number is None else "detect"
    return found or None, number


def properties(items: Sequence[str]) -> dict[str, str]:
    """Return texts by name from ``K=V``.

    Raises:
        click.BadParameter: one is not of this form.
    """
    pairs = [item.partition("=") for item in items]
    for item, (name, equals, _) in zip(items, pairs, strict=True):
        if not name or not equals:
            raise click.BadParameter(f"{item!r} is not NAME=VALUE, such as gpu=a100", param_hint="--where")
    return {name: value for name, _, value in pairs}


def where_of(router: Router, wanted: Mapping[str, str]) -> dict[str, Any] | None:
    """Return properties with the types that agents have them in: ``true`` may be a text or a truth value.

    Raises:
        Failure: no agent has such a property.
    """
    if not wanted:
        return None
    agents = router.connections()
    found = {}
    for name, text in wanted.items():
        values = [agent.properties[name] for agent in agents if name in agent.properties]
        matching = [value for value in values if (value if isinstance(value, str) else json.dumps(value)) == text]
        if not matching:
            known = ", ".join(sorted({json.dumps(value) for value in values})[:8])
            there = f"{name}={text}; agents have {known}" if known else f"the property {name!r}"
            raise Failure(f"no agent has {there}; 'prouter agents' shows properties", Exit.NOT_THE_JOB)
        found[name] = matching[0]
    return found
