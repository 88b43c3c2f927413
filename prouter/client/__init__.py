"""The Python client of a pRouter: ``pip install 'prouter[client]'``.

    from prouter.client import Router

    with Router("http://127.0.0.1:8888") as router:
        with router.run(["python3", "main.py"], upload="project") as job:
            print(job.wait().exit_code, job.logs().text())

`Router` blocks, `AsyncRouter` has the same methods as coroutines. docs/python.md is the guide.

Names are imported when they are first used: a program that blocks loads no asyncio, and ``import prouter.client`` alone
costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prouter.client.async_job import AsyncJob
    from prouter.client.async_router import AsyncRouter
    from prouter.client.async_streams import AsyncEventStream, AsyncLogStream
    from prouter.client.core.errors import (
        AgentUnavailable,
        Conflict,
        ConnectionFailed,
        Forbidden,
        InvalidRequest,
        JobEnded,
        JobUnreachable,
        KeyReused,
        NoAgent,
        NoSpace,
        NotFound,
        NotSupported,
        Overloaded,
        PreconditionFailed,
        RouterError,
        StartFailed,
        TimedOut,
        TooLarge,
        Unauthorized,
    )
    from prouter.client.core.models import (
        Bridge,
        Connection,
        Entry,
        Event,
        Explanation,
        JobInfo,
        Outcome,
        RouterInfo,
        Share,
        Synced,
        Token,
        Transferred,
        WhoAmI,
    )
    from prouter.client.core.progress import Progress
    from prouter.client.job import Job
    from prouter.client.router import Router
    from prouter.client.streams import EventStream, LogStream

__all__ = [
    "AgentUnavailable",
    "AsyncEventStream",
    "AsyncJob",
    "AsyncLogStream",
    "AsyncRouter",
    "Bridge",
    "Conflict",
    "Connection",
    "ConnectionFailed",
    "Entry",
    "Event",
    "EventStream",
    "Explanation",
    "Forbidden",
    "InvalidRequest",
    "Job",
    "JobEnded",
    "JobInfo",
    "JobUnreachable",
    "KeyReused",
    "LogStream",
    "NoAgent",
    "NoSpace",
    "NotFound",
    "NotSupported",
    "Outcome",
    "Overloaded",
    "PreconditionFailed",
    "Progress",
    "Router",
    "RouterError",
    "RouterInfo",
    "Share",
    "StartFailed",
    "Synced",
    "TimedOut",
    "Token",
    "TooLarge",
    "Transferred",
    "Unauthorized",
    "WhoAmI",
]

_MODULES = {
    "prouter.client.async_job": ("AsyncJob",),
    "prouter.client.async_router": ("AsyncRouter",),
    "prouter.client.async_streams": (
        "AsyncEventStream",
        "AsyncLogStream",
    ),
    "prouter.client.core.errors": (
        "AgentUnavailable",
        "Conflict",
        "ConnectionFailed",
        "Forbidden",
        "InvalidRequest",
        "JobEnded",
        "JobUnreachable",
        "KeyReused",
        "NoAgent",
        "NoSpace",
        "NotFound",
        "NotSupported",
        "Overloaded",
        "PreconditionFailed",
        "RouterError",
        "StartFailed",
        "TimedOut",
        "TooLarge",
        "Unauthorized",
    ),
    "prouter.client.core.models": (
        "Bridge",
        "Connection",
        "Entry",
        "Event",
        "Explanation",
        "JobInfo",
        "Outcome",
        "RouterInfo",
        "Share",
        "Synced",
        "Token",
        "Transferred",
        "WhoAmI",
    ),
    "prouter.client.core.progress": ("Progress",),
    "prouter.client.job": ("Job",),
    "prouter.client.router": ("Router",),
    "prouter.client.streams": (
        "EventStream",
        "LogStream",
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'prouter.client' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
