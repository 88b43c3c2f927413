"""Keys that sign what jobs are told about their visitors: made, published and replaced by whichever worker comes first.

All keys are in one file, mode 0600. Each is published for a while before it signs, so that a job's server which keeps
the public keys knows it already, and for a while after its last signature.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from jwt.algorithms import ECAlgorithm

from prouter.access.list_file import Entry, ListFile, Seen
from prouter.config.directories import make_private
from prouter.config.errors import ConfigError

__all__ = ["ASSERTION_KEYS", "ASSERTION_LIFETIME", "PUBLISHED_BEFORE", "AssertionKeys"]

ASSERTION_KEYS = "assertion-keys.json"
"""Name of the file in the router's state directory."""
ASSERTION_LIFETIME = 300
"""Seconds for which an assertion is valid."""
PUBLISHED_BEFORE = 900.0
"""Seconds for which a key is published before it signs."""

_ALGORITHM = "ES256"
_ROTATE_AFTER = 86400.0
"""Seconds after which a key has a successor."""
_KEPT_AFTER = 3600.0
"""Seconds for which a key is published after its last signature."""
_EARLY = 30
"""Seconds by which an assertion is valid before it is made: clocks of agents may be behind."""
_ADVICE = "remove it: the router makes new keys, and jobs' servers fetch them"


@dataclass(frozen=True, slots=True)
class _Key:
    """A key as it is stored; `created` is in seconds since the epoch, `pem` the private key in PKCS 8."""

    id: str
    created: float
    pem: str

    @classmethod
    def new(cls, now: float) -> _Key:
        private = generate_private_key(SECP256R1())
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return cls(secrets.token_hex(8), now, pem.decode("ascii"))

    @property
    def private(self) -> EllipticCurvePrivateKey:
        found = load_pem_private_key(self.pem.encode("ascii"), None)
        if not isinstance(found, EllipticCurvePrivateKey):
            raise TypeError("it is no key of an elliptic curve")
        return found


class AssertionKeys:
    """The keys of a router.

    Args:
        directory: the router's state directory.

    Raises:
        ConfigError: by every method: the file cannot be used.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = ListFile(directory / ASSERTION_KEYS, "keys", _ADVICE)
        self._seen: Seen | None = None
        self._keys: list[_Key] = []
        self._signer: tuple[str, EllipticCurvePrivateKey] | None = None
        """Id and key of the last signature, as reading a key takes a while."""

    def sign(self, claims: dict[str, Any], now: float | None = None) -> str:
        """Return `claims` as a JWT (RFC 7519) that is valid for `ASSERTION_LIFETIME` seconds.

        Args:
            now: seconds since the epoch; the time by default.
        """
        now = time.time() if now is None else now
        key = _signs(self._current(now), now)
        if self._signer is None or self._signer[0] != key.id:
            self._signer = key.id, self._private(key)
        issued = int(now)
        times = {"iat": issued, "nbf": issued - _EARLY, "exp": issued + ASSERTION_LIFETIME}
        return jwt.encode({**claims, **times}, self._signer[1], algorithm=_ALGORITHM, headers={"kid": key.id})

    def published(self, now: float | None = None) -> list[dict[str, Any]]:
        """Return the public keys as JWKs (RFC 7517), the newest last.

        Args:
            now: seconds since the epoch; the time by default.
        """
        keys = self._current(time.time() if now is None else now)
        return [self._public(key) for key in keys]

    def _public(self, key: _Key) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(ECAlgorithm.to_jwk(self._private(key).public_key()))
        return {**found, "kid": key.id, "use": "sig", "alg": _ALGORITHM}

    def _private(self, key: _Key) -> EllipticCurvePrivateKey:
        try:
            return key.private
        except (ValueError, TypeError) as error:
            raise self._file.damaged(error) from error

    def _current(self, now: float) -> list[_Key]:
        """Return the keys that are in use, the oldest first; make one if it is time."""
        seen = self._file.seen()
        if seen != self._seen or not self._keys:
            self._keys, self._seen = self._read(), seen
        if not _is_due(self._keys, now):
            return self._keys
        try:
            make_private(self._directory)
            with self._file.locked():
                self._keys = self._renewed(self._read(), now)
                self._seen = self._file.seen()
        except OSError as error:
            raise ConfigError(f"{self._file.path} cannot be written: {error.strerror or error}") from error
        return self._keys

    def _renewed(self, keys: list[_Key], now: float) -> list[_Key]:
        """Return the keys with a new one, unless another worker was first."""
        if not _is_due(keys, now):
            return keys
        kept = [key for position, key in enumerate(keys) if not _is_over(keys, position, now)]
        renewed = [*kept, _Key.new(now)]
        self._file.write([_entry(key) for key in renewed])
        return renewed

    def _read(self) -> list[_Key]:
        try:
            keys = [_Key(str(entry["id"]), float(entry["created"]), str(entry["key"])) for entry in self._file.read()]
        except (ValueError, TypeError, KeyError) as error:
            raise self._file.damaged(error) from error
        return sorted(keys, key=lambda key: key.created)


def _entry(key: _Key) -> Entry:
    return {"id": key.id, "created": key.created, "key": key.pem}


def _is_due(keys: list[_Key], now: float) -> bool:
    """Whether it is time for a new key."""
    return not keys or now >= keys[-1].created + _ROTATE_AFTER


def _signs(keys: list[_Key], now: float) -> _Key:
    """Return the newest key that was published for long enough; the oldest one if there is none."""
    return next((key for key in reversed(keys) if now >= key.created + PUBLISHED_BEFORE), keys[0])


def _is_over(keys: list[_Key], position: int, now: float) -> bool:
    """Whether nothing counts any more that a key has signed: a newer one has long taken over."""
    if position + 1 == len(keys):
        return False
    return now >= keys[position + 1].created + PUBLISHED_BEFORE + ASSERTION_LIFETIME + _KEPT_AFTER
