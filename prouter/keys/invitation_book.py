"""Invitations on disk: an SQLite database that the command line and the running broker both write."""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prouter.config.errors import ConfigError
from prouter.keys.invitations import Bound, Holder, Invitation, Refused, Usable, decide, hash_of, new_token

__all__ = ["BOOK", "InvitationBook"]

BOOK = "invitations.sqlite"
"""Name of the database in the router's state directory."""
_VERSION = 1
_TABLES = """
    CREATE TABLE IF NOT EXISTS invitations (
        id TEXT PRIMARY KEY, token_hash BLOB NOT NULL UNIQUE, name TEXT NOT NULL, uses INTEGER,
        created REAL NOT NULL, expires REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS holders (
        invitation TEXT NOT NULL, uid TEXT NOT NULL, public_key TEXT NOT NULL, since REAL NOT NULL,
        PRIMARY KEY (invitation, uid)
    ) WITHOUT ROWID;
"""
_FORGET_AFTER = 30 * 86400.0
"""Seconds after which an invitation that expired unused is forgotten."""
_MOST = 10_000
"""Invitations kept: the broker holds all of them in memory."""


class InvitationBook:
    """The database of a router's invitations. Each method is one transaction.

    Args:
        path: of the database; made with mode 0600 if it is not there.
        patience: seconds to wait for another process's transaction.

    Raises:
        ConfigError: by every method: the database cannot be used.
    """

    def __init__(self, path: Path, patience: float = 5.0) -> None:
        self._path = path
        with self._explained():
            # SQLite would make the file with the umask's mode, and later widen that of its journal accordingly.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._database = sqlite3.connect(path, timeout=patience, isolation_level=None, check_same_thread=False)
            self._database.executescript(f"BEGIN IMMEDIATE; {_TABLES} COMMIT;")
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version not in (0, _VERSION):
                raise ConfigError(f"{path} is of a later version of prouter ({version}); use that one")
            if version == 0:
                self._database.execute(f"PRAGMA user_version = {_VERSION}")

    def issue(self, *, name: str, uses: int | None, now: float, lifetime: float) -> tuple[Invitation, str]:
        """Make an invitation; returns it with its token, which is not stored and cannot be read again.

        Args:
            now: seconds since the epoch.
            lifetime: seconds for which agents may use it for the first time.
        """
        token = new_token()
        invitation = Invitation(secrets.token_hex(4), hash_of(token), name, uses, now, now + lifetime, {})
        with self._transaction():
            self._database.execute(
                "DELETE FROM invitations WHERE expires < ? AND id NOT IN (SELECT invitation FROM holders)",
                (now - _FORGET_AFTER,),
            )
            (count,) = self._database.execute("SELECT count(*) FROM invitations").fetchone()
            if count >= _MOST:
                raise ConfigError(f"there are {count} invitations already; revoke some with 'prouter invite revoke'")
            self._database.execute(
                "INSERT INTO invitations VALUES (?, ?, ?, ?, ?, ?)",
                (invitation.id, invitation.token_hash, name, uses, invitation.created, invitation.expires),
            )
        return invitation, token

    def all(self) -> list[Invitation]:
        """Every invitation, the oldest first."""
        with self._transaction("DEFERRED"):
            holders: dict[str, dict[str, Holder]] = {}
            for invitation, uid, key, since in self._database.execute("SELECT * FROM holders ORDER BY since, uid"):
                holders.setdefault(invitation, {})[uid] = Holder(uid, key, since)
            rows = self._database.execute(
                "SELECT id, token_hash, name, uses, created, expires FROM invitations ORDER BY created, id"
            ).fetchall()
        return [_invitation(row, holders.get(row[0], {})) for row in rows]

    def revoke(self, identifier: str) -> bool:
        """Delete an invitation with its holders; whether there was one."""
        with self._transaction():
            self._database.execute("DELETE FROM holders WHERE invitation = ?", (identifier,))
            deleted = self._database.execute("DELETE FROM invitations WHERE id = ?", (identifier,)).rowcount
        return bool(deleted)

    def bind(self, identifier: str, uid: str, public_key: str, now: float) -> Bound | Refused:
        """Make an agent a holder, if the invitation still allows it: another process may have revoked it meanwhile."""
        return self.bind_all([(identifier, Holder(uid, public_key, now))])[0]

    def bind_all(self, agents: Sequence[tuple[str, Holder]]) -> list[Bound | Refused]:
        """Make agents holders of invitations, in one transaction: it waits for the disk once.

        Args:
            agents: the id of the invitation and the agent, for each.
        """
        with self._transaction():
            return [self._bind(identifier, agent) for identifier, agent in agents]

    def _bind(self, identifier: str, agent: Holder) -> Bound | Refused:
        row = self._database.execute(
            "SELECT id, token_hash, name, uses, created, expires FROM invitations WHERE id = ?", (identifier,)
        ).fetchone()
        if row is None:
            return Refused(f"invitation {identifier} was revoked; 'prouter invite' makes another one")
        known = self._database.execute(
            "SELECT uid, public_key, since FROM holders WHERE invitation = ? AND uid = ?", (identifier, agent.uid)
        ).fetchone()
        taken, first = self._database.execute(
            "SELECT count(*), coalesce(min(uid), '') FROM holders WHERE invitation = ?", (identifier,)
        ).fetchone()
        verdict = decide(_invitation(row, {}), Holder(*known) if known is not None else None, taken, first, agent)
        if not isinstance(verdict, Usable):
            return verdict
        holder = verdict.holder
        self._database.execute(
            "INSERT OR REPLACE INTO holders VALUES (?, ?, ?, ?)",
            (identifier, holder.uid, holder.public_key, holder.since),
        )
        return Bound()

    def version(self) -> int:
        """A number that changes whenever another process has changed something.

        Cheap: SQLite reads one number of the file.
        """
        with self._explained():
            (version,) = self._database.execute("PRAGMA data_version").fetchone()
        return int(version)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        with self._explained():
            self._database.execute(f"BEGIN {kind}")
            try:
                yield
                self._database.execute("COMMIT")
            finally:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            advice = (
                "" if isinstance(error, sqlite3.OperationalError) else "; move it away to go on without invitations"
            )
            raise ConfigError(f"{self._path} cannot be used: {error}{advice}") from error
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be used: {error.strerror or error}") from error


def _invitation(row: tuple[Any, ...], holders: dict[str, Holder]) -> Invitation:
    """An invitation of a row of the table, its columns in the order of the table."""
    identifier, token_hash, name, uses, created, expires = row
    return Invitation(identifier, token_hash, name, uses, created, expires, holders)
