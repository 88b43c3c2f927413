"""Whether and how far a request is let in: the view that one worker has of the router's tokens.

A request costs a comparison of the clock and, once access is restricted, one SHA-256 of its field Authorization. The
look-up of a hash takes the same time for every wrong token as far as an attacker can tell: what its time depends on is
the hash of the presented token, of which nobody can choose more than a few bits, and never the text of a stored one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from prouter.access.credentials import authorization, presented
from prouter.access.roles import Principal
from prouter.access.token_file import Seen, TokenFile
from prouter.access.tokens import Token, hash_of
from prouter.config.errors import ConfigError

__all__ = ["LOOK_EVERY", "AccessGate"]

log = logging.getLogger("prouter.access")

LOOK_EVERY = 0.25
"""Seconds for which a worker goes by what it knows: after that long, a revoked token is refused everywhere."""
_REMEMBERED = 4096
"""Values of Authorization that are remembered by their hashes."""


class AccessGate:
    """The tokens, as this process knows them.

    Args:
        directory: the router's state directory.
        tokens: those of the configuration.
        always: whether access is restricted even without a token: other machines can reach the router.

    Attributes:
        file: the tokens that are made and revoked while the router runs.
        configured: the tokens of the configuration.
        required: whether requests need credentials.
        generation: grows whenever somebody who was let in would not be let in again.
    """

    def __init__(self, directory: Path, tokens: Sequence[Token] = (), *, always: bool = False) -> None:
        self.file = TokenFile(directory)
        self.configured = tuple(tokens)
        self.required = self._always = always or bool(tokens)
        self.generation = 0
        self._seen: Seen | None = None
        self._stored: list[Token] = []
        self._by_hash: dict[str, Principal] = {}
        self._ids: frozenset[str] = frozenset()
        self._by_field: dict[bytes, Principal] = {}
        """By the SHA-256 of a whole value of Authorization: none of these values is kept in memory."""
        self._next_expiry = 0.0
        self._next_look = 0.0
        self._unreadable = ""
        self._use(time.time())
        self.look()

    def refresh(self, now: float) -> None:
        """Look whether something has changed, unless that was done a moment ago; `now` is monotonic."""
        if now >= self._next_look:
            self._next_look = now + LOOK_EVERY
            self.look()

    def look(self) -> None:
        """Look whether the tokens have changed or expired."""
        wall = time.time()
        try:
            seen = self.file.seen()
            if seen != self._seen or self._unreadable:
                self._stored = self.file.all()
                self._unreadable = ""
                self._seen = seen
                self._use(wall)
            elif self._next_expiry and wall >= self._next_expiry:
                self._use(wall)
        except ConfigError as error:
            if self._unreadable != str(error):
                log.error("event=tokens_unreadable error=%r", str(error))
            self._unreadable = str(error)
            self._stored = []
            self._use(wall)

    def authenticate(self, headers: list[tuple[bytes, bytes]]) -> Principal | None:
        """Return whose credentials are in the fields of a request; None if there are none, or none that count."""
        value = authorization(headers)
        if value is None:
            return None
        digest = sha256(value).digest()
        found = self._by_field.get(digest)
        if found is None:
            token = presented(value)
            if token is None:
                return None
            hashed = hash_of(token)
            found = self._by_hash.get(hashed)
            if found is None:
                self.look()  # another worker may have made it a moment ago
                found = self._by_hash.get(hashed)
            if found is not None:
                if len(self._by_field) >= _REMEMBERED:
                    self._by_field.clear()
                self._by_field[digest] = found
        return found

    def holds(self, principal: Principal) -> bool:
        """Whether somebody who was let in would be let in again: by the same token, or because nobody needs one."""
        return principal.id in self._ids if principal.id else not self.required

    def tokens(self) -> list[Token]:
        """Return all tokens, those of the configuration first.

        Raises:
            ConfigError: the file cannot be used.
        """
        return [*self.configured, *self.file.all()]

    def _use(self, wall: float) -> None:
        """Go by the tokens that are known and valid now."""
        valid = [token for token in (*self.configured, *self._stored) if token.valid(wall)]
        self._by_hash = {token.hash: token.principal for token in reversed(valid)}
        self._by_field.clear()
        ids = frozenset(token.id for token in valid)
        # A worker that has seen tokens does not open up because their file is gone.
        required = self.required or self._always or self._seen is not None or bool(self._unreadable)
        if self._ids - ids or required is not self.required:
            self.generation += 1
        self._ids, self.required = ids, required
        self._next_expiry = min((token.expires for token in valid if token.expires is not None), default=0.0)
