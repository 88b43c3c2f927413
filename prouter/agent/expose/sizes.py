"""Check, before a start, that the system accepts arguments and environment of this size.

Source: execve(2), "Limits on size of arguments and environment".
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from prouter.agent.expose.exposure import Plan
from prouter.errors import InvalidRequest
from prouter.requests import MAX_STRING, StartRequest

__all__ = ["check_sizes"]

_MOST = 6 * 1024 * 1024
"""Most bytes of arguments and environment together; the kernel accepts no more, whatever the stack's limit."""
_POINTER = 9
"""Bytes that each string costs in addition: its NUL, and a pointer to it."""


def check_sizes(request: StartRequest, plan: Plan, tokens: Mapping[str, str]) -> None:
    """Check the size of a start's arguments and variables with their templates filled in, without filling them in.

    Args:
        tokens: the value of each template (`prouter.agent.jobs.starts.environment.fill`).

    Raises:
        InvalidRequest: one of them, or all together, are longer than the system accepts.
    """
    filled = tokens if plan.templates else {}
    total = 0
    for number, text in enumerate(request.args):
        size = _size(text, filled)
        if size > MAX_STRING:
            raise _too_long(f"args.{number}", size)
        total += size + _POINTER
    for name, text in request.env.items():
        size = _size(text, filled) + len(name.encode()) + 1
        if size > MAX_STRING:
            raise _too_long(f"env.{name:.64}", size)
        total += size + _POINTER
    told = os.sysconf("SC_ARG_MAX")
    most = min(_MOST, told) if told > 0 else _MOST
    if total > most:
        raise InvalidRequest(
            f"Invalid request: args and env have {total} bytes with their templates filled in; this agent's system"
            f" takes {most}"
        )


def _size(text: str, tokens: Mapping[str, str]) -> int:
    size = len(text.encode())
    if "{" in text:
        size += sum(text.count(token) * (len(value.encode()) - len(token)) for token, value in tokens.items())
    return size


def _too_long(what: str, size: int) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid request: {what}: {size} bytes with its templates filled in; the system accepts {MAX_STRING}"
    )
