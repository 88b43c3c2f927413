"""The space that the owner of a job has left for uploads, where ``limits.sandbox_bytes_per_owner`` is set."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prouter.errors import Limit, LimitReached

if TYPE_CHECKING:
    from prouter.web.router_client import RouterClient
    from prouter.web.routes import JobRoute

__all__ = ["within_space"]

_DECISION = 10.0
"""Seconds that the broker has to decide about an upload."""
_RETRY_AFTER = 5.0

Read = Callable[[int], bytes]


def within_space(router: RouterClient, route: JobRoute, size: int | None, read: Read) -> Read:
    """Ask the broker, which has the sizes of the sandboxes on all agents, for an upload; return how to read its body.

    Args:
        size: bytes of the body; None if nobody knows. Then reading ends with an error at the owner's limit.
        read: returns up to so many bytes of the body.

    Raises:
        LimitReached: the owner has as many bytes as is allowed, or would have more.
        AgentUnavailable: the broker does not reply in time.
    """
    most = router.config.limits.sandbox_bytes_per_owner
    if not most:
        return read
    job = route.record.uid
    space = router.call("jobs.upload", {"connection": route.connection, "job": job, "size": size}, timeout=_DECISION)
    left = space.get("left")
    return _bounded(read, left, most, job) if size is None and isinstance(left, int) else read


def _bounded(read: Read, left: int, most: int, job: str) -> Read:
    """Return a function that reads up to `left` bytes, and raises an error if there are more."""
    taken = 0

    def read_some(amount: int) -> bytes:
        nonlocal taken
        data = read(amount)
        taken += len(data)
        if taken > left:
            raise LimitReached(
                f"the upload has more than the {left} bytes that the owner of job '{job}' may still store: all "
                f"sandboxes together may have {most} (limits.sandbox_bytes_per_owner)",
                job=job,
                retry_after=_RETRY_AFTER,
                limit=Limit("limits.sandbox_bytes_per_owner", most),
            )
        return data

    return read_some
