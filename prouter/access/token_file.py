"""Access tokens on disk: one JSON file that the command line and all workers of a router read and write.

The file exists from the first token on. From then on access is restricted, also when all tokens are revoked.
"""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

from prouter.access.list_file import Entry, ListFile, Seen
from prouter.access.roles import NAME, Role
from prouter.access.tokens import Token, hash_of, new_token
from prouter.config.errors import ConfigError
from prouter.errors import MadeBefore

__all__ = ["TOKENS", "TokenFile"]

TOKENS = "tokens.json"
"""Name of the file in the router's state directory."""
_ADVICE = "restore it from a backup, or move it away and make new tokens with 'prouter token create'"
_MOST = 10_000
"""Tokens kept: every worker holds all of them in memory."""
_FORGET_AFTER = 30 * 86400.0
"""Seconds after which an expired token is not listed any more."""


class TokenFile:
    """The file of a router's tokens.

    Args:
        directory: the router's state directory.

    Raises:
        ConfigError: by every method: the file cannot be used.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / TOKENS
        self._file = ListFile(self.path, "tokens", _ADVICE)

    def seen(self) -> Seen | None:
        """Return what changes with the file's content; None if there is no file."""
        return self._file.seen()

    def all(self) -> list[Token]:
        """Return all tokens, the oldest first, those that have expired included."""
        try:
            return [_token(entry) for entry in self._file.read()]
        except (ValueError, TypeError, KeyError) as error:
            raise self._file.damaged(error) from error

    def issue(self, *, name: str, role: Role, now: float, lifetime: float | None, key: str = "") -> tuple[Token, str]:
        """Make a token; return how it is stored, and its text, which is not stored and cannot be read again.

        Args:
            now: seconds since the epoch.
            lifetime: seconds for which it is valid; None for ever.
            key: Idempotency-Key of the request; empty without one.

        Raises:
            ConfigError: the name is none; there are too many tokens.
            MadeBefore: a request with this key has made one.
        """
        if NAME.fullmatch(name) is None:
            raise ConfigError(
                f"{name[:64]!r} is no name for a token: 1 to 64 letters, digits and . _ @ + - are expected"
            )
        text = new_token()
        made_by = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest() if key else ""
        token = Token(
            secrets.token_hex(4), name, role, hash_of(text.encode()), now, None if lifetime is None else now + lifetime,
            made_by,
        )  # fmt: skip
        with self._file.locked():
            tokens = [known for known in self.all() if known.valid(now - _FORGET_AFTER)]
            for known in tokens:
                if made_by and known.made_by == made_by:
                    raise MadeBefore(
                        f"this Idempotency-Key has made token {known.id} already, and no token is shown twice; if you "
                        f"did not receive it, revoke it (DELETE /tokens/{known.id}) and use a new key",
                        code="token_exists",
                        made=known.id,
                    )
            if len(tokens) >= _MOST:
                raise ConfigError(f"there are {len(tokens)} tokens already; revoke some with 'prouter token revoke'")
            self._write([*tokens, token])
        return token, text

    def revoke(self, identifier: str) -> bool:
        """Delete a token; whether there was one."""
        with self._file.locked():
            tokens = self.all()
            left = [token for token in tokens if token.id != identifier]
            if len(left) == len(tokens):
                return False
            self._write(left)
        return True

    def _write(self, tokens: list[Token]) -> None:
        self._file.write([_entry(token) for token in tokens])


def _entry(token: Token) -> Entry:
    return {
        "id": token.id,
        "name": token.name,
        "role": token.role.label,
        "hash": token.hash,
        "created": token.created,
        "expires": token.expires,
        "made_by": token.made_by,
    }


def _token(entry: Entry) -> Token:
    expires = entry["expires"]
    return Token(
        id=str(entry["id"]),
        name=str(entry["name"]),
        role=Role.of(entry["role"]),
        hash=str(entry["hash"]),
        created=float(entry["created"]),
        expires=None if expires is None else float(expires),
        made_by=str(entry.get("made_by", "")),
    )
