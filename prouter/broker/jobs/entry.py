"""One job in the job table: its record, packed, and what the table asks for often."""

from __future__ import annotations

from dataclasses import replace
from sys import intern
from typing import Any

from prouter.fabric.frames import pack_body, unpack_body
from prouter.jobs import JobRecord, Reason, State

__all__ = ["Entry", "key_in", "owner_in", "pack_record", "packed_size"]

_REST = 200
"""Approximate bytes of a packed record without its name, arguments, ports and error."""


_STATES = {state.value: state for state in State}
# A long history asks a million times; looking a state up in a set takes five times as long.
_FINISHED, _CLOSED = State.FINISHED, State.CLOSED


class Entry:
    """One job.

    Attributes:
        agent: uid of its agent.
        state: CLOSED once the job was removed; its last record stays as it was before that.
        revision: of the newest record that its agent told.
        removal: id of the last call that asked for its removal, empty if there was none.
        confirmed: whether its agent has told its record since this broker started, or it has ended.
        lost: whether it counts as ended because its agent is gone.
        ended_at: when it ended, seconds since the epoch; None while it is alive.
        packed: its last record, as the store has it.
        size: bytes of that.
        resources: what it takes of its agent's resources; nothing once it has ended.
        owner: name of the access token that created the job; None without one.
        key: hash of the idempotency key that created it; None without one.
        client: the first part of its path, if it was queued; None for its connection.
        stopping: calls that stop it and are not answered yet.
        tallied: the state under which the job table counts it, and its bytes as `counted` there; empty if it does not.
        usage: CPU seconds and resident bytes as its agent last told, while it runs; None if they are not known.
    """

    __slots__ = (
        "__weakref__",
        "agent",
        "client",
        "confirmed",
        "connection",
        "counted",
        "created_at",
        "ended_at",
        "key",
        "lost",
        "name",
        "owner",
        "packed",
        "removal",
        "resources",
        "revision",
        "size",
        "state",
        "stopping",
        "tallied",
        "uid",
        "usage",
    )

    def __init__(
        self,
        uid: str,
        connection: str,
        agent: str,
        name: str,
        created_at: float,
        state: str,
        revision: int,
        lost: bool,
        removal: str,
        ended_at: float | None,
        packed: bytes,
    ) -> None:
        self.uid = uid
        self.connection = intern(connection)
        self.agent = intern(agent)
        self.name = intern(name)
        self.created_at = created_at
        self.state = _STATES[state]
        self.revision = revision
        self.lost = lost
        self.removal = removal
        self.stopping = 0
        self.ended_at = ended_at
        self.usage: tuple[float, int] | None = None
        self.tallied = ""
        self.counted = 0
        self.confirmed = self.ended
        self.packed = packed
        self.resources = _NOTHING if self.ended else _resources_in(packed)
        self.owner = owner_in(packed)
        self.key = key_in(packed)
        self.client = _client_in(packed)
        self.size = len(packed)

    @classmethod
    def heard(cls, record: JobRecord, agent: str) -> Entry:
        """A job whose agent tells its record for the first time."""
        entry = cls(
            record.uid,
            record.connection,
            agent,
            record.name,
            record.created_at,
            record.state.value,
            record.revision,
            False,
            "",
            None,
            b"",
        )
        entry.set(record)
        entry.confirmed = True
        return entry

    @property
    def place(self) -> tuple[int, str]:
        """Its place in lists: when it was created, in microseconds, and its uid."""
        return int(self.created_at * 1_000_000), self.uid

    @property
    def ended(self) -> bool:
        """Whether it has ended; only a job that was lost may run again, when its agent returns."""
        return self.state is _FINISHED or self.state is _CLOSED

    @property
    def removed(self) -> bool:
        """Whether it was removed."""
        return self.state is State.CLOSED

    @property
    def dormant(self) -> bool:
        """Whether it neither runs nor will, unless somebody starts it: its agent says so."""
        if self.state is not State.NEW or not self.confirmed:
            return False
        wire = self.wire
        return wire["queue"] is None and not wire["will_start"]

    def set(self, record: JobRecord) -> None:
        """Take a newer record."""
        self.state = record.state
        self.revision = record.revision
        self.owner = intern(record.owner) if record.owner is not None else None
        self.key = record.key
        self.client = intern(record.client) if record.client is not None else None
        self.lost = record.reason is Reason.AGENT_LOST
        self.packed = pack_record(record.to_wire())
        self.size = len(self.packed)
        self.resources = record.resources if record.resources and not record.ended else _NOTHING
        if record.ended:
            self.usage = None

    def close(self, before: JobRecord, removal: str) -> None:
        """Note that the job was removed.

        Args:
            before: its last record; from agents also the record with the state CLOSED.
            removal: id of the call that asked for it, empty if the agent removed it by itself.
        """
        if before.revision >= self.revision and before.state is not State.CLOSED:
            self.set(before)
        self.revision = max(self.revision, before.revision)
        self.resources = _NOTHING
        self.state = State.CLOSED
        self.removal = removal or self.removal

    @property
    def last_record(self) -> JobRecord:
        """The record, as it was before a removal."""
        return JobRecord.from_wire(unpack_body(self.packed))

    @property
    def as_created(self) -> JobRecord:
        """The job's record as its creation was answered first. One that its agent had ready ran already."""
        record = self.record
        if record.instead_of is not None:
            return replace(
                record, state=State.RUNNING, exit_code=None, signal=None, reason=None, error=None, finished_at=None
            )
        return JobRecord(
            self.uid,
            self.connection,
            self.name,
            created_at=self.created_at,
            owner=self.owner,
            template=record.template,
        )

    @property
    def record(self) -> JobRecord:
        """The record, with the state CLOSED if the job was removed."""
        record = self.last_record
        return replace(record, state=State.CLOSED, revision=self.revision) if self.removed else record

    @property
    def wire(self) -> dict[str, Any]:
        """`record` as a map (`JobRecord.to_wire`), with the usage that the agent last told."""
        wire = self._last_wire()
        if self.usage is not None:
            wire["cpu_seconds"], wire["rss_bytes"] = self.usage
        return wire

    @property
    def told(self) -> dict[str, Any]:
        """`record` as a map, made without the record."""
        return {**self._last_wire(), "revision": self.revision}

    def _last_wire(self) -> dict[str, Any]:
        wire = {**_EMPTY, **unpack_body(self.packed), "state": self.state.value}
        return wire if len(wire) == len(_EMPTY) else {name: wire[name] for name in _EMPTY}


def packed_size(record: JobRecord) -> int:
    """Approximate bytes of a record once it is packed."""
    texts = len(record.name) + len(record.error or "") + sum(map(len, record.args)) + 2 * len(record.args)
    return _REST + texts + 3 * len(record.ports)


_EMPTY = JobRecord("", "", "").to_wire()
_NOTHING: dict[str, float] = {}
_OWNER, _KEY, _CLIENT, _RESOURCES = b"\xa5owner", b"\xa3key", b"\xa6client", b"\xa9resources"
"""The names of these fields as MessagePack writes them."""


def owner_in(packed: bytes) -> str | None:
    """The owner in a packed record. Most of a long history have none, and are not unpacked for it."""
    owner = unpack_body(packed).get("owner") if _OWNER in packed else None
    return intern(owner) if isinstance(owner, str) else None


def key_in(packed: bytes) -> str | None:
    """The hash of the idempotency key in a packed record."""
    key = unpack_body(packed).get("key") if _KEY in packed else None
    return key if isinstance(key, str) else None


def _client_in(packed: bytes) -> str | None:
    """The first part of the path in a packed record."""
    client = unpack_body(packed).get("client") if _CLIENT in packed else None
    return intern(client) if isinstance(client, str) else None


def _resources_in(packed: bytes) -> dict[str, float]:
    """The resources in a packed record."""
    resources = unpack_body(packed).get("resources") if _RESOURCES in packed else None
    return resources if isinstance(resources, dict) else _NOTHING


def pack_record(wire: dict[str, Any]) -> bytes:
    """A record (`JobRecord.to_wire`) without its empty fields, because a hundred thousand of them may be kept."""
    return pack_body(
        {
            name: value
            for name, value in wire.items()
            if value is not None and value is not False and value not in ([], {})
        }
    )
