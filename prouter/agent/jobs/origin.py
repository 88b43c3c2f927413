"""Where a job comes from."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from prouter.jobs import JobRecord

__all__ = ["UNKNOWN", "Origin"]


@dataclass(frozen=True, slots=True)
class Origin:
    """The request that makes a job.

    Attributes:
        owner: name of its access token; None without one.
        key: hash of its idempotency key; None without one.
        digest: tells it from other requests with the same key.
        router: uid of the router that got it.
        resources: what the job takes of the agent's resources until it has ended.
        template: name of the template by which the job will be started; None without one.
        client: the first part of the job's path, if that is not the connection.
        will_start: whether the router starts the job without another request.
    """

    owner: str | None = None
    key: str | None = None
    digest: str | None = None
    router: str = ""
    resources: Mapping[str, float] = field(default_factory=dict)
    template: str | None = None
    client: str | None = None
    will_start: bool = False

    def record(self, uid: str, connection: str, name: str) -> JobRecord:
        """The first record of the job."""
        return JobRecord(
            uid,
            connection,
            name,
            created_at=time.time(),
            owner=self.owner,
            key=self.key,
            digest=self.digest,
            resources=dict(self.resources),
            template=self.template,
            client=self.client,
            will_start=self.will_start,
        )


UNKNOWN = Origin()
"""Nothing is known of the request."""
