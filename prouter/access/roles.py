"""Roles, what a route asks for, and the decision whether somebody may use it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, IntEnum

from prouter.errors import Forbidden
from prouter.jobs import OWNER_NAME

__all__ = ["NAME", "OPEN_ROUTER", "Need", "Principal", "Role", "is_allowed", "refusal"]

NAME = re.compile(OWNER_NAME)
"""Names of tokens, which become owners of jobs."""


class Role(IntEnum):
    """What somebody may do; each role may do everything that a lower one may."""

    VIEWER = 1
    """Reads everything but files and logs."""
    USER = 2
    """Creates jobs, and does everything with its own."""
    OPERATOR = 3
    """Does everything with all jobs and agents."""
    ADMIN = 4
    """Also manages tokens, and stops the router."""

    @property
    def label(self) -> str:
        """The role as the API, the configuration and the command line write it."""
        return self.name.lower()

    @classmethod
    def of(cls, label: str) -> Role:
        """Return the role with this label.

        Raises:
            KeyError: there is none.
        """
        return {role.label: role for role in cls}[label]


class Need(Enum):
    """What a route asks for."""

    NOTHING = "nothing"
    """Also without credentials."""
    VIEWER = "viewer"
    USER = "user"
    OWNER = "owner"
    """The role user for one's own job, operator for those of others."""
    OPERATOR = "operator"
    ADMIN = "admin"


_LOWEST = {
    Need.NOTHING: Role.VIEWER,
    Need.VIEWER: Role.VIEWER,
    Need.USER: Role.USER,
    Need.OWNER: Role.USER,
    Need.OPERATOR: Role.OPERATOR,
    Need.ADMIN: Role.ADMIN,
}


@dataclass(frozen=True, slots=True)
class Principal:
    """Who sent a request.

    Attributes:
        name: of the token or of the trusted proxy's user; the owner of the jobs that are created with it. ``share:ID``
            for the visitor of a share link.
        role: what this one may do.
        via: how the identity was shown: ``token``; ``session`` for who signed in at the dashboard; ``proxy`` for a
            user whom a trusted proxy names; ``share`` for a share link; ``open`` where nobody has to show anything.
        id: of the token, or of the share link; empty for a proxy's user.
        session: id of the session; empty without one.
        job: uid of the only job whose HTTP this one may use, because a pass or a share link let it in; empty for all.
        ambient: whether browsers add the credentials by themselves, to requests of any page.
    """

    name: str
    role: Role
    via: str = "token"
    id: str = ""
    session: str = ""
    job: str = ""
    ambient: bool = False


OPEN_ROUTER = Principal("", Role.ADMIN, "open")
"""Everybody, while access is not restricted."""


def is_allowed(principal: Principal, need: Need, owner: str | None = None) -> bool:
    """Whether `principal` may use a route.

    Args:
        owner: of the job concerned; only for `Need.OWNER`.
    """
    if need is Need.OWNER and principal.role < Role.OPERATOR:
        return principal.role is Role.USER and owner is not None and owner == principal.name
    return principal.role >= _LOWEST[need]


def refusal(principal: Principal, need: Need, owner: str | None = None, *, job: str | None = None) -> Forbidden:
    """Return the error for somebody whose role is not enough; it names the role that is.

    Args:
        owner: of the job concerned; only for `Need.OWNER`.
        job: uid of that job.
    """
    if need is not Need.OWNER:
        wanted = f"this needs the role {_LOWEST[need].label}"
    elif principal.role < Role.USER:
        wanted = "this needs the role user for jobs of one's own, operator for those of others"
    else:
        of = f"belongs to '{owner}'" if owner is not None else "has no owner"
        wanted = f"job '{job}' {of}: this needs the role operator"
    text = f"{wanted}; you are '{principal.name}' with the role {principal.role.label}"
    return Forbidden(text, job=job, code="role_needed")
