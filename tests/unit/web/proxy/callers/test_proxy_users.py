"""Users in the fields of a trusted proxy's requests, and fields with which others claim to be one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.access.roles import NAME, Principal, Role
from prouter.config.router import RouterControl
from prouter.errors import Forbidden
from prouter.web.proxy.addresses.fields import RequestField, RequestFields
from prouter.web.proxy.callers.proxy_users import ProxyUsers

ROLES = {"guests": "viewer", "staff": "user", "ops": "operator", "admins": "admin"}
CONTROL = RouterControl.model_validate(
    {
        "trusted_proxies": ["unix"],
        "user_header": "Remote-User",
        "group_header": "Remote-Groups",
        "group_roles": ROLES,
        "user_role": "none",
    }
)
FIELD = st.sampled_from([b"Remote-User", b"remote-user", b"REMOTE-GROUPS", b"Remote_User", b"X-Other"])
VALUE = st.sampled_from([b"", b" ", b"alice", b"bob", b"staff", b"admins,staff", b"a b", b"\xff", b"x" * 65, b"ops"])


def found_or_refused(users: ProxyUsers, headers: list[tuple[bytes, bytes]]) -> tuple[Principal | None, str | None]:
    """The user, or the code of the error."""
    try:
        return users.find(headers), None
    except Forbidden as error:
        return None, error.code


@given(st.lists(st.tuples(FIELD, VALUE), max_size=4))
def test_a_user_is_named_once_and_by_a_name_that_fits(headers: list[tuple[bytes, bytes]]) -> None:
    names = [value.strip() for name, value in headers if name.lower() == b"remote-user"]
    groups = [value.strip() for name, value in headers if name.lower() == b"remote-groups"]
    users = ProxyUsers(CONTROL)
    for _again in range(2):
        found, refused = found_or_refused(users, headers)
        if refused is not None:
            assert len(names) == 1
            fits = NAME.fullmatch(names[0].decode("latin-1")) is not None
            assert refused == ("no_role" if fits else "unusable_user")
            if fits:
                assert not groups or not set(groups[0].decode("latin-1").split(",")) & set(ROLES)
            continue
        if len(names) != 1 or not names[0] or len(groups) > 1:
            assert found is None
            continue
        assert found is not None
        assert found.name.encode() == names[0]
        assert (found.via, found.id, found.ambient) == ("proxy", "", True)
        assert found.role is max(Role.of(ROLES[group]) for group in groups[0].decode().split(",") if group in ROLES)


@pytest.mark.parametrize("name", [b"Remote-User", b"remote-user", b"REMOTE-GROUPS"])
def test_jobs_get_the_fields_from_trusted_proxies_only(name: bytes) -> None:
    fields = RequestFields.of(CONTROL)
    assert fields[name] == RequestField.CLAIM
    assert RequestFields()[name] == RequestField.PASS
    twin = name.replace(b"-", b"_")
    assert fields[twin] == RequestField.DROP
