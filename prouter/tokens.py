"""Tokens by which agents and routers authenticate each other."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence

__all__ = ["SHORTEST", "Tokens", "problem_of"]

SHORTEST = 8
"""Characters of a token for endpoints that other machines reach, at least."""
_VARIABLE = re.compile(r"\$(\w+|\{\w*\})")


def problem_of(token: str) -> str | None:
    """Return why a token protects nothing, as part of a sentence; None if it is usable."""
    if not token.strip():
        return "one is empty, which is what everybody presents who has none"
    if _VARIABLE.fullmatch(token.strip()):
        return "one is the name of a variable that was not filled in"
    return None


class Tokens:
    """The tokens that an endpoint accepts.

    Args:
        accepted: tokens that are accepted from anybody, or the token of each uid. Without any, every peer is accepted.
    """

    def __init__(self, accepted: Sequence[str] | Mapping[str, str] = ()) -> None:
        self._accepted = accepted

    def mark(self, uid: object, presented: object) -> str | None:
        """Return a short mark of the peer's token if it is accepted, and None if it is not.

        The mark tells peers with the same token from others without revealing the token; it is empty if no token is
        required. The comparison takes the same time whichever token is presented.
        """
        if not self._accepted:
            return ""
        candidate = presented.encode("utf-8", "surrogatepass") if isinstance(presented, str) else b""
        if isinstance(self._accepted, Mapping):
            own = self._accepted.get(uid) if isinstance(uid, str) else None
            known = [own] if own is not None else []
        else:
            known = list(self._accepted)
        found = False
        for token in known:
            found |= hmac.compare_digest(token.encode("utf-8", "surrogatepass"), candidate)
        return hashlib.sha256(b"token:" + candidate).hexdigest()[:8] if found and candidate else None
