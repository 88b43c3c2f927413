"""Whether and how far a request is let in: the view that one worker has of tokens, sessions and share links.

A request costs a comparison of the clock and, once access is restricted, one SHA-256 of its field Authorization. The
look-up of a hash takes the same time for every wrong token as far as an attacker can tell: what its time depends on is
the hash of the presented token, of which nobody can choose more than a few bits, and never the text of a stored one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Generic, TypeVar

from prouter.access.credentials import authorization, is_basic, presented
from prouter.access.ended_sessions import EndedSessions
from prouter.access.list_file import Seen
from prouter.access.roles import Principal, Role
from prouter.access.session_ids import is_of
from prouter.access.share_file import Share, ShareFile
from prouter.access.signing import Kind, SigningKey
from prouter.access.token_file import TokenFile
from prouter.access.tokens import Token, hash_of
from prouter.config.errors import ConfigError

__all__ = ["LOOK_EVERY", "AccessGate"]

log = logging.getLogger("prouter.access")

LOOK_EVERY = 0.25
"""Seconds for which a worker goes by what it knows: after that long, a revoked token is refused everywhere."""
_REMEMBERED = 4096
"""Values of Authorization that are remembered by their hashes."""

Content = TypeVar("Content")


class _Watched(Generic[Content]):
    """A file, as it was when it was last looked at.

    Args:
        seen: returns what changes with the file.
        read: returns its content.
        nothing: what counts while the file cannot be read.
        event: name of the log's event for that.
    """

    def __init__(
        self, seen: Callable[[], Seen | None], read: Callable[[], Content], nothing: Content, event: str
    ) -> None:
        self._seen, self._read, self._nothing, self._event = seen, read, nothing, event
        self.content = nothing
        self.known: Seen | None = None
        self.unreadable = ""

    def look(self) -> bool:
        """Read the file if it has changed; return whether it has, or could not be read."""
        try:
            seen = self._seen()
            if seen == self.known and not self.unreadable:
                return False
            self.content = self._read()
            self.known, self.unreadable = seen, ""
        except ConfigError as error:
            if self.unreadable != str(error):
                log.error("event=%s error=%r", self._event, str(error))
            self.content, self.unreadable = self._nothing, str(error)
        return True


class AccessGate:
    """Who is let in, as this process knows it.

    Args:
        directory: the router's state directory.
        tokens: those of the configuration.
        always: whether access is restricted even without a token: other machines can reach the router, or a proxy
            names its users.

    Attributes:
        file: the tokens that are made and revoked while the router runs.
        shares: the share links.
        ended: the sessions that were ended.
        key: signs sessions, passes and proofs.
        configured: the tokens of the configuration.
        required: whether requests need credentials.
        generation: grows whenever somebody who was let in would not be let in again.
    """

    def __init__(self, directory: Path, tokens: Sequence[Token] = (), *, always: bool = False) -> None:
        self.file = TokenFile(directory)
        self.shares = ShareFile(directory)
        self.ended = EndedSessions(directory)
        self.key = SigningKey(directory)
        self.configured = tuple(tokens)
        self.required = self._always = always or bool(tokens)
        self.generation = 0
        self._tokens: _Watched[list[Token]] = _Watched(self.file.seen, self.file.all, [], "tokens_unreadable")
        self._shares: _Watched[list[Share]] = _Watched(self.shares.seen, self.shares.all, [], "shares_unreadable")
        self._ended: _Watched[frozenset[str]] = _Watched(
            self.ended.seen, self.ended.all, frozenset(), "sessions_unreadable"
        )
        self._by_hash: dict[str, Principal] = {}
        self._by_id: dict[str, Token] = {}
        self._by_field: dict[bytes, Principal] = {}
        """By the SHA-256 of a whole value of Authorization: none of these values is kept in memory."""
        self._shares_by_hash: dict[str, Share] = {}
        self._shares_by_id: dict[str, Share] = {}
        self._next_expiry = 0.0
        self._next_look = 0.0
        self._use(time.time())
        self.look()

    def refresh(self, now: float) -> None:
        """Look whether something has changed, unless that was done a moment ago; `now` is monotonic."""
        if now >= self._next_look:
            self._next_look = now + LOOK_EVERY
            self.look()

    def look(self) -> None:
        """Look whether anything has changed or expired."""
        wall = time.time()
        ended = self._ended.content
        changed = [self._tokens.look(), self._shares.look(), self._ended.look()]
        if self._ended.content - ended:
            self.generation += 1
        if any(changed) or (self._next_expiry and wall >= self._next_expiry):
            self._use(wall)

    def authenticate(self, headers: list[tuple[bytes, bytes]]) -> Principal | None:
        """Return whose token is in the fields of a request; None if there is none, or none that counts."""
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
                if is_basic(value):
                    found = replace(found, ambient=True)
                if len(self._by_field) >= _REMEMBERED:
                    self._by_field.clear()
                self._by_field[digest] = found
        return found

    def token_holder(self, token: str) -> Principal | None:
        """Return who holds this token; None if it does not count."""
        hashed = hash_of(token.encode("utf-8", "surrogatepass"))
        if hashed not in self._by_hash:
            self.look()
        return self._by_hash.get(hashed)

    def token(self, identifier: str) -> Token | None:
        """Return the token with this id; None if there is none that counts."""
        return self._by_id.get(identifier)

    def session(self, text: str) -> Principal | None:
        """Return who signed in with a session's cookie; None if the session is over."""
        claims = self.claims(Kind.SESSION, text)
        return None if claims is None else self.signed_in(str(claims.get("tid")), str(claims.get("sid")))

    def signed_in(self, token: str, session: str) -> Principal | None:
        """Return who signed in with the token of this id; None if the token was revoked or the session ended."""
        known = self._by_id.get(token)
        if known is None:
            self.look()  # another worker may have let in its holder a moment ago
            known = self._by_id.get(token)
        if known is None or self._is_over(session) or not is_of(session, known):
            return None
        return replace(known.principal, via="session", session=session, ambient=True)

    def claims(self, kind: Kind, text: str) -> dict[str, Any] | None:
        """Return the claims of a text that the router has signed; None if it is none of this kind, or too old."""
        try:
            return self.key.read(kind, text)
        except ConfigError as error:
            log.error("event=signing_key_unusable error=%r", str(error))
            return None

    def share(self, identifier: str) -> Share | None:
        """Return the share link with this id; None if it has ended."""
        share = self._shares_by_id.get(identifier)
        if share is None:
            self.look()  # another worker may have made it a moment ago
            share = self._shares_by_id.get(identifier)
        return share if share is not None and share.valid(time.time()) else None

    def shared_jobs(self) -> set[str]:
        """Return the uids of all jobs with share links, those that do not count at the moment included."""
        return {share.job for share in self._shares.content}

    def share_by_secret(self, secret: str) -> Share | None:
        """Return the share link with this secret; None if there is none."""
        hashed = hash_of(secret.encode("utf-8", "surrogatepass"))
        if hashed not in self._shares_by_hash:
            self.look()
        return self._shares_by_hash.get(hashed)

    def holds(self, principal: Principal) -> bool:
        """Whether somebody who was let in would be let in again by the same means."""
        if principal.via == "share":
            return self.share(principal.id) is not None
        if principal.session and self._is_over(principal.session):
            return False
        if principal.id:
            return principal.id in self._by_id
        return principal.via == "proxy" or not self.required

    def tokens(self) -> list[Token]:
        """Return all tokens, those of the configuration first.

        Raises:
            ConfigError: the file cannot be used.
        """
        return [*self.configured, *self.file.all()]

    def _is_over(self, session: str) -> bool:
        """Whether a session was ended; if it cannot be told which were, all are over."""
        return bool(self._ended.unreadable) or session in self._ended.content

    def _use(self, wall: float) -> None:
        """Go by what is known and valid now."""
        valid = [token for token in (*self.configured, *self._tokens.content) if token.valid(wall)]
        roles: dict[str, Role] = {}
        for token in valid:
            roles[token.name] = max(token.role, roles.get(token.name, token.role))
        shares = [share for share in self._shares.content if share.valid(wall) and share.stands(roles)]
        before = {*self._by_id, *self._shares_by_id}
        self._by_hash = {token.hash: token.principal for token in reversed(valid)}
        self._by_id = {token.id: token for token in valid}
        self._by_field.clear()
        self._shares_by_hash = {share.hash: share for share in shares}
        self._shares_by_id = {share.id: share for share in shares}
        # A worker that has seen tokens does not open up because their file is gone.
        known = self._tokens.known is not None or bool(self._tokens.unreadable)
        required = self.required or self._always or known
        if before - {*self._by_id, *self._shares_by_id} or required is not self.required:
            self.generation += 1
        self.required = required
        ends = [*(token.expires for token in valid), *(share.expires for share in shares)]
        self._next_expiry = min((end for end in ends if end is not None), default=0.0)
