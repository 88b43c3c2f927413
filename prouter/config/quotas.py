"""Configuration keys of a router: what owners and addresses may take of it, and its queue."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from prouter.config.section import Section

__all__ = ["RouterLimits", "RouterQueue"]


def _usable_rate(value: float) -> float:
    if 0 < value < _LOWEST_RATE:
        raise ValueError(f"must be 0 for no limit, or at least {_LOWEST_RATE}")
    return value


_LOWEST_RATE = 0.001
_Rate = Annotated[float, Field(ge=0, le=1e6), AfterValidator(_usable_rate)]


class RouterLimits(Section):
    """What one owner, or one address, may take of the router. Whoever takes more gets 429; 0 is no limit."""

    jobs_per_owner: int = Field(
        0, ge=0, description="Jobs of one owner that have not ended, on all agents together; 0 for no limit."
    )
    requests_per_owner: _Rate = Field(
        0.0,
        description="Requests per second of one owner to the API and to jobs; ten seconds' worth may come at once. "
        "0 for no limit.",
    )
    sandbox_bytes_per_owner: int = Field(
        0,
        ge=0,
        description="Bytes in the sandboxes of one owner's jobs, on all agents together. Beyond it the owner can "
        "create no job and upload nothing; 0 for no limit.",
    )
    unauthenticated_per_address: _Rate = Field(
        50.0,
        description="Requests per second without valid credentials of one address, or one IPv6 network of 64 bits; "
        "ten seconds' worth may come at once. 0 for no limit.",
    )
    failures_per_address: _Rate = Field(
        600.0,
        description="Requests with wrong tokens per minute of one address, or one IPv6 network of 64 bits; a failed "
        "sign-in at the dashboard counts as thirty. 0 for no limit.",
    )
    failures_in_all: _Rate = Field(6000.0, description="The same of all addresses together; 0 for no limit.")


class RouterQueue(Section):
    """Jobs that wait until an agent has space for them."""

    size: int = Field(
        10_000,
        ge=0,
        le=1_000_000,
        description="Jobs that may wait at the same time; a further one gets 429. 0 for none.",
    )
    reserve_after: float = Field(
        60.0,
        ge=0,
        description="Seconds for which jobs behind a large one may be placed before it; then an agent is kept free "
        "for it.",
    )
