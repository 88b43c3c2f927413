"""Roles: who may do what, and what a refusal says."""

from __future__ import annotations

import pytest

from prouter.access.roles import Need, Principal, Role, is_allowed, refusal

ALLOWED = {
    Need.NOTHING: ("viewer", "user", "operator", "admin"),
    Need.VIEWER: ("viewer", "user", "operator", "admin"),
    Need.USER: ("user", "operator", "admin"),
    Need.OPERATOR: ("operator", "admin"),
    Need.ADMIN: ("admin",),
}


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("need", ALLOWED)
def test_a_role_may_do_what_lower_ones_may(role: Role, need: Need) -> None:
    assert is_allowed(Principal("ann", role), need) is (role.label in ALLOWED[need])


@pytest.mark.parametrize(
    ("role", "owner", "allowed"),
    [
        (Role.VIEWER, "ann", False),
        (Role.USER, "ann", True),
        (Role.USER, "bob", False),
        (Role.USER, None, False),
        (Role.OPERATOR, "bob", True),
        (Role.OPERATOR, None, True),
        (Role.ADMIN, "bob", True),
    ],
)
def test_a_user_has_its_own_jobs_only(role: Role, owner: str | None, allowed: bool) -> None:
    assert is_allowed(Principal("ann", role), Need.OWNER, owner) is allowed


def test_a_job_without_an_owner_is_not_that_of_somebody_without_a_name() -> None:
    assert not is_allowed(Principal("", Role.USER), Need.OWNER, None)


@pytest.mark.parametrize(
    ("role", "need", "owner", "words"),
    [
        (Role.VIEWER, Need.USER, None, "needs the role user; you are 'ann' with the role viewer"),
        (Role.OPERATOR, Need.ADMIN, None, "needs the role admin"),
        (Role.VIEWER, Need.OWNER, "ann", "role user for jobs of one's own, operator for those of others"),
        (Role.USER, Need.OWNER, "bob", "job 'j' belongs to 'bob': this needs the role operator"),
        (Role.USER, Need.OWNER, None, "job 'j' has no owner: this needs the role operator"),
    ],
)
def test_a_refusal_names_the_role_that_is_needed(role: Role, need: Need, owner: str | None, words: str) -> None:
    error = refusal(Principal("ann", role), need, owner, job="j" if need is Need.OWNER else None)
    assert words in error.detail
    assert (error.status, error.code) == (403, "role_needed")


def test_roles_have_their_labels() -> None:
    assert [role.label for role in Role] == ["viewer", "user", "operator", "admin"]
    assert all(Role.of(role.label) is role for role in Role)
    with pytest.raises(KeyError):
        Role.of("root")
