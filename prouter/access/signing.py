"""Short texts that the router hands out and recognises again: sessions, passes and proofs, as signed JWTs (RFC 7519).

All workers share one key, a file of the state directory. Removing the file and restarting the router ends all of them.
"""

from __future__ import annotations

import os
import secrets
import time
from enum import Enum
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from prouter.config.directories import make_private
from prouter.config.errors import ConfigError

__all__ = ["Kind", "SigningKey"]

_FILE = "signing.key"
_SIZE = 32
_ALGORITHM = "HS256"
_REMEMBERED = 4096
"""Texts whose claims are remembered; to verify one takes as long as to forward a request."""


class Kind(Enum):
    """What a signed text is for. One is never taken for another."""

    SESSION = "session"
    """The cookie of somebody who signed in at the dashboard."""
    PROOF = "proof"
    """Shows that a request comes from a page of the router's own."""
    PASS = "pass"  # noqa: S105 - a name
    """The cookie that opens one job's HTTP."""
    ENTRY = "entry"
    """What is exchanged for a pass, once, within a minute."""


class SigningKey:
    """The key, made at its first use.

    Args:
        directory: the router's state directory.

    Raises:
        ConfigError: by every method: the key's file cannot be used.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / _FILE
        self._key = b""
        self._verified: dict[bytes, dict[str, Any]] = {}
        """Claims by the SHA-256 of kind and text: a browser sends the same ones with every request."""

    def sign(self, kind: Kind, claims: dict[str, Any], lifetime: float) -> str:
        """Return `claims` as text, which is valid for `lifetime` seconds."""
        jwt = _jwt()
        now = int(time.time())
        text: str = jwt.encode(
            {**claims, "aud": kind.value, "iat": now, "exp": now + int(lifetime)}, self._secret(), algorithm=_ALGORITHM
        )
        return text

    def read(self, kind: Kind, text: str) -> dict[str, Any] | None:
        """Return the claims of a text, ``iat`` and ``exp`` among them; None if it is none of this kind, or too old.

        They are not to be changed.
        """
        if not text.isascii():
            return None
        digest = sha256(f"{kind.value} {text}".encode("ascii")).digest()
        known = self._verified.get(digest)
        if known is not None and time.time() < known["exp"]:
            return known
        found = self._decoded(kind, text)
        if found is not None:
            if len(self._verified) >= _REMEMBERED:
                self._verified.clear()
            self._verified[digest] = found
        return found

    def _decoded(self, kind: Kind, text: str) -> dict[str, Any] | None:
        jwt = _jwt()
        try:
            found: dict[str, Any] = jwt.decode(
                text,
                self._secret(),
                algorithms=[_ALGORITHM],
                audience=kind.value,
                options={"require": ["aud", "exp", "iat"]},
            )
        except jwt.InvalidTokenError:
            return None
        return found

    def _secret(self) -> bytes:
        if not self._key:
            self._key = self._load()
        return self._key

    def _load(self) -> bytes:
        try:
            if not self._path.exists():
                self._make()
            key = self._path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be used: {error.strerror or error}") from error
        if len(key) != _SIZE:
            raise ConfigError(f"{self._path} does not hold {_SIZE} bytes; remove it, which ends all sessions")
        return key

    def _make(self) -> None:
        """Make the file whole at once: of several workers that do so, the first one's counts."""
        make_private(self._path.parent)
        temporary = self._path.with_name(f".{_FILE}.{secrets.token_hex(8)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_SIZE))
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, self._path)
        except FileExistsError:
            return
        finally:
            temporary.unlink()


def _jwt() -> ModuleType:
    """Return the library. It imports ssl, which gunicorn's parent must not do before gevent patches ssl in workers."""
    import jwt

    return jwt
