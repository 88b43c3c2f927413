"""Bodies of API requests about access: tokens and share links."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from prouter.jobs import OWNER_NAME
from prouter.requests import Body, Duration, Text

__all__ = ["ShareRequest", "TokenRequest"]

_SHARED_FOR = 7 * 86400.0
"""Seconds for which a share link is valid unless the request says otherwise."""


class TokenRequest(Body):
    """Body of POST /tokens."""

    name: Annotated[str, Field(pattern=rf"^{OWNER_NAME}$", max_length=64)] = Field(
        description="Name of its holder, who owns the jobs created with it: letters, digits and . _ @ + -",
        examples=["alice"],
    )
    role: Literal["viewer", "user", "operator", "admin"] = Field(description="What its holder may do.")
    expires: Duration | None = Field(default=None, description="Seconds for which it is valid; null for ever.")


class ShareRequest(Body):
    """Body of POST JOB_PATH/share."""

    expires: Duration | None = Field(
        default=_SHARED_FOR, description="Seconds for which the link is valid; null for as long as the job exists."
    )
    name: Text = Field(default="", max_length=200, description="What the link is for; shown in lists.")
    methods: Literal["all", "read"] = Field(
        default="all", description="read: visitors may only read (GET, HEAD, OPTIONS), and open no WebSockets."
    )
