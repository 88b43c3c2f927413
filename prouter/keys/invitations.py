"""Invitations: tokens that let agents link, for the first time until they expire, and from then on as themselves.

An agent that links with an invitation becomes one of its holders: its uid and its public key are bound to the token.
Nobody else can use that place. The expiry limits who becomes a holder, not how long a holder may come back; revoking
the invitation ends that too.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass, replace

__all__ = [
    "Bound",
    "Holder",
    "Invitation",
    "Refused",
    "Usable",
    "decide",
    "hash_of",
    "is_invitation",
    "is_mark",
    "new_token",
]

_PREFIX = "pri_"
"""Tells a token of an invitation from those of ``server.accept_tokens``, for routers and for programs that look for
secrets in files."""


_MARK = "invitation:"


def new_token() -> str:
    """Make a token that nobody can guess: 32 random bytes."""
    return f"{_PREFIX}{secrets.token_urlsafe(32)}"


def is_invitation(token: object) -> bool:
    """Whether `token` looks like an invitation's."""
    return isinstance(token, str) and token.startswith(_PREFIX)


def is_mark(mark: str) -> bool:
    """Whether `mark` is an invitation's (`Invitation.mark`)."""
    return mark.startswith(_MARK)


def hash_of(token: str) -> bytes:
    """The SHA-256 hash by which a token is stored. A random token needs neither salt nor a slow hash."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True, slots=True)
class Holder:
    """An agent that has linked with an invitation.

    Attributes:
        uid: the agent's.
        public_key: the agent's, in Z85; empty when its link was not encrypted.
        since: when it linked first, seconds since the epoch.
    """

    uid: str
    public_key: str
    since: float

    def matches(self, uid: str, public_key: str) -> bool:
        """Whether this is the holder. One that came without a key may come back with one, but not the reverse."""
        return self.uid == uid and self.public_key in ("", public_key)


@dataclass(frozen=True, slots=True)
class Bound:
    """The agent is a holder of the invitation."""


@dataclass(frozen=True, slots=True)
class Usable:
    """The agent may become a holder."""

    holder: Holder


@dataclass(frozen=True, slots=True)
class Refused:
    """The invitation does not let the agent in.

    Attributes:
        reason: why, with the next step.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Invitation:
    """An invitation.

    Attributes:
        id: by which it is listed and revoked; no secret.
        token_hash: see `hash_of`.
        name: what the user calls it; may be empty.
        uses: how many agents may become holders; None for any number.
        created: seconds since the epoch.
        expires: when nobody becomes a holder any more, seconds since the epoch.
        holders: agents bound to it, by uid, in the order in which they came.
    """

    id: str
    token_hash: bytes
    name: str
    uses: int | None
    created: float
    expires: float
    holders: dict[str, Holder]

    @property
    def mark(self) -> str:
        """How the broker marks links of its holders, as `prouter.tokens.Tokens.mark` does for other tokens."""
        return f"{_MARK}{self.id}"

    def state(self, now: float) -> str:
        """Say whether it can be used: ``open``, ``used`` or ``expired``."""
        if self.uses is not None and len(self.holders) >= self.uses:
            return "used"
        return "open" if now < self.expires else "expired"

    def check(self, uid: str, public_key: str, now: float) -> Bound | Usable | Refused:
        """Decide about an agent that presents the token; see `decide`."""
        first = next(iter(self.holders), "")
        return decide(self, self.holders.get(uid), len(self.holders), first, Holder(uid, public_key, now))


def decide(
    invitation: Invitation, known: Holder | None, taken: int, first: str, agent: Holder
) -> Bound | Usable | Refused:
    """Decide about an agent that presents the token of an invitation.

    Args:
        invitation: its holders are not looked at.
        known: the holder with the agent's uid.
        taken: how many holders there are.
        first: uid of one of them.
        agent: who presents the token, and when, in seconds since the epoch.
    """
    if known is not None:
        if not known.matches(agent.uid, agent.public_key):
            return Refused(
                f"invitation {invitation.id} is bound to another key of agent '{known.uid}'; revoke it with "
                f"'prouter invite revoke {invitation.id}' and invite the agent again"
            )
        same = known.public_key == agent.public_key
        return Bound() if same else Usable(replace(known, public_key=agent.public_key))
    if invitation.uses is not None and taken >= invitation.uses:
        by = f"agent '{first}'" if invitation.uses == 1 else f"{invitation.uses} agents"
        return Refused(f"invitation {invitation.id} was used by {by}; 'prouter invite' makes another one")
    if agent.since >= invitation.expires:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(invitation.expires))
        return Refused(f"invitation {invitation.id} expired at {when} UTC; 'prouter invite' makes another one")
    return Usable(agent)
