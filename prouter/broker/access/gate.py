"""The rules by which the broker admits agents: tokens, known keys, invitations. No I/O.

=====================  ==============================================================================================
an agent that …        is admitted when
=====================  ==============================================================================================
has an invitation      the invitation is open, or bound to this very agent
has a known key        its key is in ``server.accept_keys``, and it has a token if ``server.accept_tokens`` asks for one
has a token            the token is in ``server.accept_tokens`` and ``server.accept_keys`` is not set
has none of these      neither setting is set, and the router listens on loopback or the agent comes through its socket
=====================  ==============================================================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from prouter.broker.base.security import Security
from prouter.keys.invitations import Bound, Holder, Invitation, Refused, Usable, hash_of, is_invitation, is_mark
from prouter.tokens import Tokens

__all__ = ["Admitted", "Bind", "Claim", "Denied", "Gate", "Rules"]

Settle = Callable[[Bound | Refused, float], None]
"""Gets what became of a binding, and the time now."""
Bind = Callable[[str, Holder, Settle], None]
"""Stores who holds an invitation: its id, the agent, and who wants to know the outcome."""

_REVOKED = "the invitation was revoked, or is another router's; 'prouter invite' makes another one"
_BINDINGS = 4096
"""Agents whose binding is being stored at the same time; others are told to try again."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the files say at the moment.

    Attributes:
        invitations: all of them.
        accepted: the uid that each key of ``server.accept_keys`` is good for, empty for any; None when it is not set.
        router_keys: public keys that agents accept of this router, the one in use first; none without encryption.
    """

    invitations: tuple[Invitation, ...] = ()
    accepted: Mapping[str, str] | None = None
    router_keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Admitted:
    """The agent is admitted.

    Attributes:
        mark: by what; agents with the same mark are counted together.
    """

    mark: str


@dataclass(frozen=True, slots=True)
class Claim:
    """The agent is admitted once it is stored that it holds the invitation: see `Gate.claim`."""

    invitation: Invitation
    holder: Holder


@dataclass(frozen=True, slots=True)
class Denied:
    """The agent is refused.

    Attributes:
        code: of the refusal, see docs/fabric.md.
        text: why, with the next step.
    """

    code: str
    text: str


class Gate:
    """The rules and what they say about an agent.

    Args:
        tokens: of ``server.accept_tokens``.
        closed: whether an agent needs a token, a known key or an invitation even where neither tokens nor keys are set.

    Attributes:
        bind: stores holders of invitations.
        rules: what the files say.
    """

    def __init__(self, tokens: Sequence[str] | Mapping[str, str], *, closed: bool) -> None:
        self._asks_for_tokens = bool(tokens)
        self._tokens = Tokens(tokens)
        self._closed = closed
        self._invitations: dict[bytes, Invitation] = {}
        """By the hash of the token: a lookup takes the same time whatever part of a token is right."""
        self._marks: set[str] = set()
        self._held: set[str] = set()
        """Public keys of holders."""
        self._owners: dict[str, dict[str, str]] = {}
        """By uid of a holder, its public key for each invitation that it holds."""
        self._open_until = -inf
        """When the last invitation that has a free place expires."""
        self._binding = 0
        self.bind: Bind = _forget
        self.rules = Rules()

    def change(self, rules: Rules) -> None:
        """Apply what the files say now."""
        self.rules = rules
        self._invitations = {invitation.token_hash: invitation for invitation in rules.invitations}
        self._held, self._owners = set(), {}
        for one in rules.invitations:
            for holder in one.holders.values():
                self._hold(one, holder)
        self._marks = {one.mark for one in rules.invitations}
        self._index_places()

    def is_revoked(self, mark: str) -> bool:
        """Return whether a link's mark is that of an invitation that was revoked."""
        return is_mark(mark) and mark not in self._marks

    def accepts(self, public_key: str, now: float) -> bool:
        """Return whether a peer with this key gets through CURVE's handshake.

        Without ``server.accept_keys`` anybody may who knows the router's key: tokens decide. With it, invited agents
        may too: those that hold an invitation and, while one is open, those whose key nobody knows yet.

        Args:
            now: seconds since the epoch.
        """
        accepted = self.rules.accepted
        return accepted is None or public_key in accepted or public_key in self._held or now < self._open_until

    def decide(self, uid: object, token: object, peer: Security, now: float) -> Admitted | Claim | Denied:
        """Decide about an agent's introduction.

        Args:
            uid: that the agent tells.
            token: that it presents.
            peer: what its connection proves.
            now: seconds since the epoch.
        """
        owner = None if peer.local else self._other_owner(uid, peer.public_key)
        if owner is not None:
            return Denied(
                "uid_in_use",
                f"uid '{uid}' belongs to the agent with invitation {owner}, which has another key; choose another "
                f"identity.uid, or end that invitation: prouter invite revoke {owner}",
            )
        if isinstance(token, str) and is_invitation(token):
            return self._invited(uid, token, peer, now)
        accepted = None if peer.local else self.rules.accepted
        if accepted is not None and accepted.get(peer.public_key) not in ("", uid):
            whose = accepted.get(peer.public_key)
            if whose is None:
                return Denied("unknown_key", "the agent's key is not in the router's server.accept_keys")
            return Denied("unknown_key", f"the agent's key is good for uid '{whose}' only (server.accept_keys)")
        if self._asks_for_tokens:
            mark = self._tokens.mark(uid, token)
            return Admitted(mark) if mark is not None else Denied("bad_token", "the token is not accepted here")
        if accepted is not None:
            return Admitted(f"key:{hashlib.sha256(peer.public_key.encode()).hexdigest()[:8]}")
        if self._closed and not peer.local:
            return Denied(
                "bad_token", "agents need an invitation here; 'prouter invite' on the router's machine makes one"
            )
        return Admitted("")

    def claim(self, claim: Claim, settle: Callable[[Admitted | Denied, float], None], now: float) -> None:
        """Store that the agent holds the invitation; `settle` gets the outcome and the time, perhaps at once."""

        def stored(outcome: Bound | Refused, now: float) -> None:
            self._binding -= 1
            if isinstance(outcome, Refused):
                settle(Denied("bad_token", outcome.reason), now)
                return
            known = self._invitations.get(claim.invitation.token_hash)
            if known is None:
                settle(Denied("bad_token", _REVOKED), now)
                return
            known.holders[claim.holder.uid] = claim.holder
            self._hold(known, claim.holder)
            self._index_places()
            settle(Admitted(known.mark), now)

        if self._binding >= _BINDINGS:
            settle(Denied("overloaded", "too many agents join at the same time; try again"), now)
            return
        self._binding += 1
        self.bind(claim.invitation.id, claim.holder, stored)

    def _invited(self, uid: object, token: str, peer: Security, now: float) -> Admitted | Claim | Denied:
        invitation = self._invitations.get(hash_of(token))
        if invitation is None:
            return Denied("bad_token", _REVOKED)
        if not isinstance(uid, str) or not uid:
            return Denied("bad_token", "an agent that is invited tells its uid")
        verdict = invitation.check(uid, peer.public_key, now)
        if isinstance(verdict, Refused):
            return Denied("bad_token", verdict.reason)
        return Claim(invitation, verdict.holder) if isinstance(verdict, Usable) else Admitted(invitation.mark)

    def _hold(self, invitation: Invitation, holder: Holder) -> None:
        if holder.public_key:
            self._held.add(holder.public_key)
            self._owners.setdefault(holder.uid, {})[invitation.id] = holder.public_key

    def _other_owner(self, uid: object, public_key: str) -> str | None:
        """The invitation whose holder has this uid and another key, so that no agent passes for it."""
        owners = self._owners.get(uid, {}) if isinstance(uid, str) else {}
        return next((identifier for identifier, key in owners.items() if key != public_key), None)

    def _index_places(self) -> None:
        free = (one.expires for one in self._invitations.values() if one.uses is None or len(one.holders) < one.uses)
        self._open_until = max(free, default=-inf)


def _forget(invitation: str, holder: Holder, settle: Settle) -> None:
    """Store nothing: nobody has told where."""
    settle(Refused("this router has no place to store who holds an invitation"), 0.0)
