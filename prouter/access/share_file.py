"""Share links on disk. Each opens one job's HTTP to whoever has its URL."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from prouter.access.list_file import Entry, ListFile, Seen
from prouter.access.roles import Principal, Role
from prouter.access.tokens import hash_of
from prouter.config.errors import ConfigError
from prouter.errors import MadeBefore

__all__ = ["SECRET_PREFIX", "SHARES", "Share", "ShareFile", "make_share"]

SHARES = "shares.json"
"""Name of the file in the router's state directory."""
_ADVICE = "restore it from a backup, or move it away and share again"
SECRET_PREFIX = "shr_"  # noqa: S105 - a name
"""Tells a share link's secret from other secrets."""
_MOST = 10_000
"""Share links kept: every worker holds all of them in memory."""
_BASE = "share:"
"""Begins the name of a visitor; no token's name has a colon."""


def _new_secret() -> str:
    """Make the secret of a share link: 32 random bytes."""
    return f"{SECRET_PREFIX}{secrets.token_urlsafe(32)}"


@dataclass(frozen=True, slots=True)
class Share:
    """A share link as it is stored.

    Attributes:
        id: by which it is listed and ended; no secret.
        job: uid of the job.
        name: what its maker calls it; may be empty.
        read_only: whether visitors may only read: GET, HEAD and OPTIONS, and no upgrade.
        maker: name of who made it, whose right to the job it depends on.
        by_proxy: whether a trusted proxy named the maker, so that no token tells whether the right has ended.
        owner: of the job; None without one.
        hash: of its secret, see `prouter.access.tokens.hash_of`.
        created: seconds since the epoch.
        expires: seconds since the epoch; None for as long as the job exists.
        made_by: hash of the Idempotency-Key that it was made with; empty without one.
    """

    id: str
    job: str
    name: str
    read_only: bool
    maker: str
    by_proxy: bool
    owner: str | None
    hash: str
    created: float
    expires: float | None
    made_by: str = ""

    def stands(self, roles: Mapping[str, Role]) -> bool:
        """Whether its maker may still open the job.

        Args:
            roles: the highest role of the valid tokens of each name.
        """
        role = roles.get(self.maker)
        if self.by_proxy:
            return True
        return role is not None and (role >= Role.OPERATOR or (role is Role.USER and self.maker == self.owner))

    def valid(self, now: float) -> bool:
        """Whether it has not expired; `now` is in seconds since the epoch."""
        return self.expires is None or now < self.expires

    @property
    def principal(self) -> Principal:
        """Its visitor."""
        return Principal(_BASE + self.id, Role.VIEWER, "share", self.id, job=self.job, ambient=True)


class ShareFile:
    """The file of a router's share links.

    Args:
        directory: the router's state directory.

    Raises:
        ConfigError: by every method: the file cannot be used.
    """

    def __init__(self, directory: Path) -> None:
        self._file = ListFile(directory / SHARES, "shares", _ADVICE)

    def seen(self) -> Seen | None:
        """Return what changes with the file's content; None if there is no file."""
        return self._file.seen()

    def all(self) -> list[Share]:
        """Return all share links, the oldest first, those that have expired included."""
        try:
            return [_share(entry) for entry in self._file.read()]
        except (ValueError, TypeError, KeyError) as error:
            raise self._file.damaged(error) from error

    def add(self, share: Share, *, now: float) -> None:
        """Store a share link, and forget those that have expired.

        Raises:
            ConfigError: there are too many.
            MadeBefore: a request with this key has made one.
        """
        with self._file.locked():
            known = [one for one in self.all() if one.valid(now)]
            for one in known:
                if share.made_by and one.made_by == share.made_by:
                    raise MadeBefore(
                        f"this Idempotency-Key has made share link {one.id} already, and no link is shown twice; if "
                        f"you did not receive it, end it (DELETE JOB/share/{one.id}) and use a new key",
                        job=share.job,
                        code="share_exists",
                        made=one.id,
                    )
            if len(known) >= _MOST:
                raise ConfigError(f"there are {len(known)} share links already; end some with DELETE JOB/share/ID")
            self._write([*known, share])

    def end(self, identifier: str, job: str) -> bool:
        """Delete a share link of a job; whether there was one."""
        with self._file.locked():
            known = self.all()
            left = [share for share in known if share.id != identifier or share.job != job]
            if len(left) == len(known):
                return False
            self._write(left)
        return True

    def drop(self, jobs: Collection[str]) -> None:
        """Delete all share links of jobs that exist no more."""
        with self._file.locked():
            known = self.all()
            left = [share for share in known if share.job not in jobs]
            if len(left) < len(known):
                self._write(left)

    def _write(self, shares: list[Share]) -> None:
        self._file.write([_entry(share) for share in shares])


def make_share(
    job: str,
    *,
    name: str,
    read_only: bool,
    maker: Principal,
    owner: str | None,
    now: float,
    lifetime: float | None,
    key: str = "",
) -> tuple[Share, str]:
    """Return a new share link as it is stored, and its secret.

    Args:
        owner: of the job; None without one.
        now: seconds since the epoch.
        lifetime: seconds for which it is valid; None for as long as the job exists.
        key: Idempotency-Key of the request; empty without one.
    """
    secret = _new_secret()
    share = Share(
        id=secrets.token_hex(6),
        job=job,
        name=name,
        read_only=read_only,
        maker=maker.name,
        by_proxy=maker.via == "proxy",
        owner=owner,
        hash=hash_of(secret.encode()),
        created=now,
        expires=None if lifetime is None else now + lifetime,
        made_by=hash_of(f"{maker.name} {job} {key}".encode("utf-8", "surrogatepass")) if key else "",
    )
    return share, secret


def _entry(share: Share) -> Entry:
    return {
        "id": share.id,
        "job": share.job,
        "name": share.name,
        "read_only": share.read_only,
        "maker": share.maker,
        "by_proxy": share.by_proxy,
        "owner": share.owner,
        "hash": share.hash,
        "created": share.created,
        "expires": share.expires,
        "made_by": share.made_by,
    }


def _share(entry: Entry) -> Share:
    expires = entry["expires"]
    return Share(
        id=str(entry["id"]),
        job=str(entry["job"]),
        name=str(entry["name"]),
        read_only=bool(entry["read_only"]),
        maker=str(entry["maker"]),
        by_proxy=bool(entry["by_proxy"]),
        owner=None if entry["owner"] is None else str(entry["owner"]),
        hash=str(entry["hash"]),
        created=float(entry["created"]),
        expires=None if expires is None else float(expires),
        made_by=str(entry["made_by"]),
    )
