"""Access tokens: made, hashed, and written in a configuration."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from prouter.access.roles import NAME, Principal, Role

__all__ = ["Token", "configured", "hash_of", "new_token"]

_PREFIX = "prt_"
"""Tells an access token from other secrets, for programs that look for secrets in files."""
_HASH = re.compile(r"[0-9a-fA-F]{64}")


def new_token() -> str:
    """Make a token that nobody can guess: 32 random bytes."""
    return f"{_PREFIX}{secrets.token_urlsafe(32)}"


def hash_of(token: bytes) -> str:
    """Return the SHA-256 by which a token is stored, in hex. A random token needs neither salt nor a slow hash."""
    return hashlib.sha256(token).hexdigest()


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is stored.

    Attributes:
        id: by which it is listed and revoked; no secret.
        name: of its holder.
        role: what its holder may do.
        hash: see `hash_of`.
        created: seconds since the epoch; 0 for one of the configuration.
        expires: seconds since the epoch; None for never.
        made_by: hash of the Idempotency-Key of the request that made it; empty without one.
    """

    id: str
    name: str
    role: Role
    hash: str
    created: float = 0.0
    expires: float | None = None
    made_by: str = ""

    def valid(self, now: float) -> bool:
        """Whether it has not expired; `now` is in seconds since the epoch."""
        return self.expires is None or now < self.expires

    @property
    def principal(self) -> Principal:
        """Who presents it."""
        return Principal(self.name, self.role, "token", self.id)


def configured(entries: Sequence[str]) -> list[Token]:
    """Return the tokens of ``control.tokens``, each entry ``NAME:ROLE:sha256:HASH``.

    Raises:
        ValueError: an entry is none; the text does not repeat it, as it may be a token by mistake.
    """
    found: list[Token] = []
    for number, entry in enumerate(entries, 1):
        name, _, rest = entry.partition(":")
        role, _, digest = rest.partition(":")
        kind, _, value = digest.partition(":")
        try:
            known = Role.of(role)
        except KeyError:
            known = None
        if NAME.fullmatch(name) is None or known is None or kind != "sha256" or _HASH.fullmatch(value) is None:
            roles = ", ".join(role.label for role in Role)
            raise ValueError(
                f"entry {number} is not NAME:ROLE:sha256:HASH with a role of {roles}; the hash, not the token, has to "
                "be given, 64 hexadecimal digits: printf %s TOKEN | sha256sum"
            )
        found.append(Token(f"config-{number}", name, known, value.lower()))
    return found
