"""Tokens by which agents and routers let each other in: which are accepted, and of whom."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence

__all__ = ["SHORTEST", "Tokens", "problem_of"]

SHORTEST = 8
"""Characters of a token that is accepted from other machines, at least."""
_VARIABLE = re.compile(r"\$(\w+|\{\w*\})")


def problem_of(token: str) -> str | None:
    """Why a token protects nothing, whoever can reach the endpoint; None when there is nothing to say."""
    if not token.strip():
        return "one is empty, which is what everybody presents who has none"
    if _VARIABLE.fullmatch(token.strip()):
        return "one is the name of a variable that was not filled in"
    return None


class Tokens:
    """What is accepted: any of a list, or of each uid its own.

    Args:
        accepted: tokens, or the token of each uid. None at all accept anything.
    """

    def __init__(self, accepted: Sequence[str] | Mapping[str, str] = ()) -> None:
        self._accepted = accepted

    def mark(self, uid: object, presented: object) -> str | None:
        """By what the peer is let in: a short mark of its token, empty when none is asked for; None when it is not.

        Takes the same time whichever token it is.
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
