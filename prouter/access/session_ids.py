"""Ids of sessions. Each belongs to one token: ids of tokens in the configuration name another one once it changes."""

from __future__ import annotations

import hashlib
import secrets
from hmac import compare_digest

from prouter.access.tokens import Token

__all__ = ["is_of", "new_session_id"]

_RANDOM = 32
"""Random digits of an id, in hex."""
_TAG = 16
"""Digits that tell to which token it belongs."""


def new_session_id(token: Token) -> str:
    """Return the id of a new session of whoever holds this token."""
    random = secrets.token_hex(_RANDOM // 2)
    return random + _tag(random, token)


def is_of(session: str, token: Token) -> bool:
    """Whether a session began with this token. An empty id stands for no session, and belongs to each."""
    return not session or compare_digest(session[_RANDOM:], _tag(session[:_RANDOM], token))


def _tag(random: str, token: Token) -> str:
    return hashlib.sha256(f"{random} {token.hash}".encode()).hexdigest()[:_TAG]
