"""Which agents are let in, by tokens, keys and invitations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from prouter.broker.access.gate import Admitted, Claim, Denied, Gate, Rules, Settle
from prouter.broker.base.security import PLAIN, Security
from prouter.keys.files import make_pair
from prouter.keys.invitations import Bound, Holder, Invitation, Refused, hash_of, new_token

KEY, OTHER, UNKNOWN = (make_pair().public for _ in range(3))
LOCAL = Security(local=True)
NOW = 1000.0


def by(key: str) -> Security:
    return Security(public_key=key)


def gate(
    tokens: tuple[str, ...] | dict[str, str] = (),
    *invitations: Invitation,
    closed: bool = True,
    accepted: dict[str, str] | None = None,
) -> Gate:
    made = Gate(tokens, closed=closed)
    made.change(Rules(invitations, accepted))
    made.bind = lambda invitation, holder, settle: settle(Bound(), NOW)
    return made


def invitation(uses: int | None = 1, expires: float = NOW + 1) -> tuple[Invitation, str]:
    token = new_token()
    return Invitation("cafe", hash_of(token), "", uses, NOW, expires, {}), token


def code(decision: object) -> str:
    assert isinstance(decision, Denied), decision
    return decision.code


def test_on_loopback_without_settings_anybody_is_let_in() -> None:
    assert gate(closed=False).decide("gpu", "", PLAIN, NOW) == Admitted("")
    assert gate(closed=False).decide("gpu", "whatever", by(UNKNOWN), NOW) == Admitted("")


def test_beyond_loopback_nobody_is_let_in_without_a_token_or_a_known_key() -> None:
    assert code(gate().decide("gpu", "", by(KEY), NOW)) == "bad_token"
    assert code(gate().decide("gpu", "", PLAIN, NOW)) == "bad_token"
    assert gate().decide("gpu", "", LOCAL, NOW) == Admitted(""), "the mode of the unix socket says who may"


def test_tokens_are_asked_for_everywhere() -> None:
    for peer in (PLAIN, LOCAL, by(KEY)):
        assert isinstance(gate(("token-one",)).decide("gpu", "token-one", peer, NOW), Admitted)
        assert code(gate(("token-one",)).decide("gpu", "", peer, NOW)) == "bad_token"
    assert code(gate({"gpu": "token-one"}).decide("other", "token-one", PLAIN, NOW)) == "bad_token"


def test_a_known_key_suffices_where_no_tokens_are_set() -> None:
    known = gate(accepted={KEY: "", OTHER: "gpu-7"}, closed=False)
    assert isinstance(known.decide("gpu", "", by(KEY), NOW), Admitted)
    assert code(known.decide("gpu", "", by(UNKNOWN), NOW)) == "unknown_key"
    assert code(known.decide("gpu", "", PLAIN, NOW)) == "unknown_key"
    assert isinstance(known.decide("gpu-7", "", by(OTHER), NOW), Admitted)
    assert "uid 'gpu-7' only" in str(known.decide("gpu", "", by(OTHER), NOW))


def test_with_both_settings_an_agent_needs_a_known_key_and_a_token() -> None:
    both = gate(("token-one",), accepted={KEY: ""})
    assert isinstance(both.decide("gpu", "token-one", by(KEY), NOW), Admitted)
    assert code(both.decide("gpu", "", by(KEY), NOW)) == "bad_token"
    assert code(both.decide("gpu", "token-one", by(UNKNOWN), NOW)) == "unknown_key"


def test_agents_with_different_keys_are_counted_apart() -> None:
    known = gate(accepted={KEY: "", OTHER: ""})
    assert known.decide("a", "", by(KEY), NOW) != known.decide("a", "", by(OTHER), NOW)


def settled(gate: Gate, claim: object) -> Any:
    assert isinstance(claim, Claim), claim
    outcomes: list[Admitted | Denied] = []
    gate.claim(claim, lambda outcome, now: outcomes.append(outcome), NOW)
    return outcomes[0] if outcomes else None


def test_an_invited_agent_is_let_in_once_that_is_stored_and_known_from_then_on() -> None:
    one, token = invitation()
    router = gate((), one, accepted={})
    claim = router.decide("gpu", token, by(KEY), NOW)
    assert settled(router, claim) == Admitted("invitation:cafe")
    assert router.decide("gpu", token, by(KEY), NOW + 1e6) == Admitted("invitation:cafe")
    assert "used by agent 'gpu'" in str(router.decide("other", token, by(OTHER), NOW))
    assert "has another key" in str(router.decide("gpu", token, by(OTHER), NOW))


@pytest.mark.parametrize("closed", [True, False])
def test_an_unknown_invitation_lets_nobody_in_even_where_anybody_is(closed: bool) -> None:
    assert "was revoked" in str(gate(closed=closed).decide("gpu", new_token(), PLAIN, NOW))


def test_an_invitation_is_for_agents_that_tell_who_they_are() -> None:
    one, token = invitation()
    assert code(gate((), one).decide(None, token, by(KEY), NOW)) == "bad_token"


def test_nobody_passes_for_an_agent_that_was_invited() -> None:
    one, token = invitation()
    other, other_token = invitation()
    other = replace(other, id="beef")
    router = gate(("token-one",), one, other, accepted={OTHER: ""})
    settled(router, router.decide("gpu", token, by(KEY), NOW))
    for presented in (other_token, "token-one"):
        refusal = router.decide("gpu", presented, by(OTHER), NOW)
        assert code(refusal) == "uid_in_use"
        assert "prouter invite revoke cafe" in str(refusal)
    assert isinstance(router.decide("gpu", other_token, by(KEY), NOW), Claim), "the agent itself may be invited again"
    assert isinstance(router.decide("gpu", "token-one", LOCAL, NOW), Admitted)
    router.change(Rules((other,), {OTHER: ""}))
    assert isinstance(router.decide("gpu", other_token, by(OTHER), NOW), Claim)


def test_what_cannot_be_stored_lets_nobody_in() -> None:
    one, token = invitation()
    router = gate((), one)
    router.bind = lambda invitation, holder, settle: settle(Refused("the disk is full"), NOW)
    assert settled(router, router.decide("gpu", token, by(KEY), NOW)) == Denied("bad_token", "the disk is full")
    assert isinstance(router.decide("gpu", token, by(KEY), NOW), Claim)


def test_an_invitation_that_is_revoked_while_it_is_claimed_lets_nobody_in() -> None:
    one, token = invitation()
    router, waiting = gate((), one), list[Settle]()
    router.bind = lambda invitation, holder, settle: waiting.append(settle)
    outcomes: list[Admitted | Denied] = []
    claim = router.decide("gpu", token, by(KEY), NOW)
    assert isinstance(claim, Claim)
    router.claim(claim, lambda outcome, now: outcomes.append(outcome), NOW)
    router.change(Rules())
    waiting[0](Bound(), NOW)
    assert code(outcomes[0]) == "bad_token"
    assert router.is_revoked(one.mark)


def test_claims_under_way_are_bounded() -> None:
    one, token = invitation(uses=None)
    router = gate((), one)
    router.bind = lambda invitation, holder, settle: None
    claim = router.decide("gpu", token, by(KEY), NOW)
    assert [settled(router, claim) for _ in range(4096)] == [None] * 4096
    assert code(settled(router, claim)) == "overloaded"


def test_the_handshake_lets_anybody_through_unless_keys_are_listed() -> None:
    assert gate().accepts(UNKNOWN, NOW)
    assert not gate(accepted={KEY: ""}).accepts(UNKNOWN, NOW)
    assert gate(accepted={KEY: ""}).accepts(KEY, NOW)


def test_the_handshake_lets_those_through_who_are_invited() -> None:
    one, token = invitation(expires=NOW + 10)
    router = gate((), one, accepted={})
    assert router.accepts(UNKNOWN, NOW), "nobody knows yet which key the invited agent has"
    assert not router.accepts(UNKNOWN, NOW + 10)
    settled(router, router.decide("gpu", token, by(KEY), NOW))
    assert not router.accepts(UNKNOWN, NOW)
    assert router.accepts(KEY, NOW + 1e6)
    router.change(Rules(accepted={}))
    assert not router.accepts(KEY, NOW)


def test_holders_of_the_files_are_known_from_the_start() -> None:
    one, token = invitation()
    one.holders["gpu"] = Holder("gpu", KEY, NOW)
    router = gate((), one, accepted={})
    assert router.accepts(KEY, NOW + 1e6)
    assert router.decide("gpu", token, by(KEY), NOW + 1e6) == Admitted(one.mark)
    assert not router.is_revoked(one.mark)
    assert not router.is_revoked("deadbeef")
