"""What a job's server is told about who sends a request: a name, and an assertion that it can verify.

Both are fields of the request. The router alone sets fields whose names begin so; those of clients do not reach jobs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from prouter.access.assertion_keys import AssertionKeys
from prouter.access.roles import Principal
from prouter.config.errors import ConfigError

__all__ = ["Assertions"]

log = logging.getLogger("prouter.access")

_USER, _ASSERTION = "X-PRouter-User", "X-PRouter-Assertion"
_REUSED = 60.0
"""Seconds for which requests of somebody to a job have the same assertion: signing takes longer than all the rest."""
_TRIED_AGAIN = 1.0
"""Seconds after which an assertion that could not be made is tried again."""
_REMEMBERED = 4096
"""Assertions that are reused."""

_Key = tuple[str, str, str, int, str]


class Assertions:
    """Makes these fields, in one worker.

    Args:
        keys: sign assertions.
        issuer: returns the router's uid; empty while it is not known.
    """

    def __init__(self, keys: AssertionKeys, issuer: Callable[[], str]) -> None:
        self.keys = keys
        self._issuer = issuer
        self._known: dict[_Key, tuple[float, bytes]] = {}
        """The fields as lines of a head, with the monotonic time until which they are reused."""

    def lines(self, principal: Principal, connection: str, job: str) -> bytes:
        """Return the fields of a request as lines of its head.

        Args:
            principal: who sends it.
            connection: uid of the connection of the job's agent.
            job: uid of the job.
        """
        key = (principal.name, principal.via, principal.id, int(principal.role), job)
        known = self._known.get(key)
        now = time.monotonic()
        if known is not None and now < known[0]:
            return known[1]
        fields = self.fields(principal, connection, job)
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields).encode("ascii")
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[key] = now + (_REUSED if len(fields) == 2 else _TRIED_AGAIN), lines
        return lines

    def fields(self, principal: Principal, connection: str, job: str) -> list[tuple[str, str]]:
        """Return the fields of a request; without the assertion if none can be made, which the log tells."""
        found = [(_USER, principal.name)]
        issuer = self._issuer()
        claims = {
            "iss": issuer,
            "sub": principal.name,
            "aud": job,
            "role": principal.role.label,
            "via": principal.via,
            "job": f"/jobs/{connection}/{job}",
        }
        if principal.via == "share":
            claims["share"] = principal.id
        try:
            if issuer:
                found.append((_ASSERTION, self.keys.sign(claims)))
        except ConfigError as error:
            log.error("event=assertion_failed job=%s error=%r", job, str(error))
        return found
