"""Creations that are under way, by key, by uid and by owner, and those that wait for an agent."""

from __future__ import annotations

from prouter.broker.base.env import Env
from prouter.broker.creations.state import Creation, CreationState
from prouter.broker.jobs.table import JobTable
from prouter.broker.placing.owner_limits import check_bytes, check_jobs
from prouter.jobs import JobRecord

__all__ = ["UnderWay"]


class UnderWay:
    """Index of the creations that have a request and no reply yet."""

    def __init__(self, env: Env, table: JobTable) -> None:
        self._env = env
        self._table = table
        self._by_key: dict[str, Creation] = {}
        self._by_uid: dict[str, Creation] = {}
        """Those that have chosen the job's uid."""
        self._of_owner: dict[str | None, set[Creation]] = {}
        self._placing: dict[Creation, None] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def with_key(self, key: str) -> Creation | None:
        """Return the creation that a key began."""
        return self._by_key.get(key)

    def with_uid(self, uid: str | None) -> Creation | None:
        """Return the creation of a job."""
        return self._by_uid.get(uid or "")

    def placing(self) -> list[Creation]:
        """Return those that wait for an agent, the earliest first."""
        return list(self._placing)

    def begin(self, creation: Creation) -> None:
        """Add a creation. Idempotent."""
        self._by_key[creation.key] = creation
        self._of_owner.setdefault(creation.owner, set()).add(creation)

    def name(self, creation: Creation, uid: str) -> None:
        """Give the creation's job a uid, perhaps another one than it had."""
        self.unname(creation)
        creation.uid = uid
        self._by_uid[uid] = creation

    def unname(self, creation: Creation) -> None:
        """Remove the creation from the index by uid. Idempotent."""
        self._by_uid.pop(creation.uid, None)

    def changed(self, creation: Creation) -> bool:
        """Note that a creation is in another state; return whether it was under way and is over now."""
        if creation.state is CreationState.PLACING:
            self._placing[creation] = None
            return False
        self._placing.pop(creation, None)
        if not creation.over or self._by_key.get(creation.key) is not creation:
            return False
        del self._by_key[creation.key]
        self._of_owner[creation.owner].discard(creation)
        if not self._of_owner[creation.owner]:
            del self._of_owner[creation.owner]
        return True

    def owner_of(self, record: JobRecord) -> str | None:
        """Return the owner of a job that an agent reports: while it is being created, the one of the request."""
        creation = self.with_uid(record.uid) or self.with_uid(record.instead_of)
        return creation.owner if creation is not None else record.owner

    def check_owner(self, owner: str | None) -> None:
        """Refuse another job of an owner who has as much as is allowed. Jobs being created count.

        Raises:
            LimitReached: that is so.
        """
        settings, accounts = self._env.settings, self._table.accounts
        if settings.jobs_per_owner:
            # A job that is in the table counts there, although the reply to its creation may not be sent yet.
            coming = sum(self._table.get(creation.uid) is None for creation in self._of_owner.get(owner, ()))
            check_jobs(owner, accounts.jobs(owner) + coming, settings.jobs_per_owner)
        check_bytes(owner, accounts.bytes(owner), settings.sandbox_bytes_per_owner)
