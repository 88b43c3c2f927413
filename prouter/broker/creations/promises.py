"""Jobs that earlier requests with the same key were promised."""

from __future__ import annotations

from prouter.broker.creations.claims import shared_key
from prouter.broker.creations.keys import Keys, check_digest
from prouter.broker.creations.state import Creation
from prouter.broker.creations.under_way import UnderWay
from prouter.broker.jobs.table import JobTable
from prouter.errors import LimitReached

__all__ = ["Promises"]


class Promises:
    """Finds and checks the jobs that keys have given."""

    def __init__(self, keys: Keys, table: JobTable, under_way: UnderWay) -> None:
        self._keys = keys
        self._table = table
        self._under_way = under_way

    def given(self, key: str, digest: str) -> tuple[str, str] | None:
        """Connection and uid of the job that the key gave, here or at another router; None if it gave none.

        Raises:
            KeyReused: the key came with another request.
        """
        known = self._keys.job(key, digest)
        entry = self._table.made_by(shared_key(key)) if known is None and digest else None
        if entry is None:
            return known
        check_digest(entry.last_record.digest or "", digest)
        return entry.connection, entry.uid

    def check(self, creation: Creation, uid: str) -> None:
        """Check the limits for a job that an earlier request was promised, and that no agent has: it would be one more.

        Raises:
            LimitReached: its owner has as much as is allowed; the job is given up.
        """
        try:
            self._under_way.check_owner(creation.owner)
        except LimitReached:
            self._keys.give_up(creation.key, uid)
            raise
