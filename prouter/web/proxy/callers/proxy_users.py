"""Users whom a trusted proxy names in a field of their requests, and the roles of their groups."""

from __future__ import annotations

from prouter.access.roles import NAME, Principal, Role
from prouter.config.router import RouterControl
from prouter.errors import Forbidden
from prouter.web.proxy.messages.heads import Header

__all__ = ["ProxyUsers"]

_REMEMBERED = 4096
"""Users that are remembered with their groups."""
_SHOWN = 64
"""Characters of a name that is none which an error repeats."""


class ProxyUsers:
    """Finds the user in the fields of a request.

    Args:
        control: names the fields, and the roles of groups.
    """

    def __init__(self, control: RouterControl) -> None:
        self._user = (control.user_header or "").lower().encode("ascii")
        self._groups = (control.group_header or "").lower().encode("ascii")
        self._roles = {group: Role.of(label) for group, label in control.group_roles.items()}
        self._other = Role.of(control.user_role) if control.user_role != "none" else None
        self._known: dict[tuple[bytes, bytes], Principal] = {}

    def find(self, headers: list[Header]) -> Principal | None:
        """Return the user in the fields of a request; None if they name none, or leave open which one.

        Args:
            headers: of a request from a trusted proxy; nobody else is believed.

        Raises:
            Forbidden: a user is named who may do nothing here.
        """
        user = _only(headers, self._user)
        groups = _only(headers, self._groups) if self._groups else b""
        if not user or groups is None:
            return None
        key = (user, groups)
        found = self._known.get(key)
        if found is None:
            found = self._principal(*key)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = found
        return found

    def _principal(self, user: bytes, groups: bytes) -> Principal:
        name = user.decode("utf-8", "replace")
        if NAME.fullmatch(name) is None:
            raise Forbidden(
                f"the proxy in front names the user {name[:_SHOWN]!a}; users of this router have names of 1 to 64 "
                "letters, digits and . _ @ + -, of which the first is a letter or a digit",
                code="unusable_user",
            )
        named = [group.strip() for group in groups.decode("utf-8", "replace").split(",")]
        role = max((self._roles[group] for group in named if group in self._roles), default=self._other)
        if role is None:
            raise Forbidden(
                f"user '{name}' is in no group that may use this router; groups with a role are listed in "
                "control.group_roles of its configuration",
                code="no_role",
            )
        return Principal(name, role, "proxy", ambient=True)


def _only(headers: list[Header], wanted: bytes) -> bytes | None:
    """Return the value of a field, empty without one; None if it is there twice, as a client may have sent one."""
    found = b""
    seen = False
    for name, value in headers:
        if len(name) == len(wanted) and name.lower() == wanted:
            if seen:
                return None
            found, seen = value.strip(), True
    return found
