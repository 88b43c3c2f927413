"""Checks of job records that agents send: a malformed one would break the lists that it is shown in."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import inf
from typing import Any

from prouter.errors import ProtocolError
from prouter.fabric.bounds import MAX_JOB_EVENT
from prouter.jobs import JobRecord, bounded
from prouter.resources import read_amounts

__all__ = ["read_record", "read_revision", "read_sandbox", "read_usage", "record_uid"]

_UID = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._~-]{1,64}\Z")
"""One segment of a URL's path that needs no escaping."""
_YEAR_10000 = 253_402_300_800.0
_LARGEST = 2**63 - 1
"""The largest integer that SQLite can hold."""
_SHORT = 256
"""Most characters of short texts: a signal, a host, the path of a unix socket."""


def read_record(wire: object, connection: str) -> JobRecord:
    """The record of a job that was created through `connection`.

    Agents of earlier versions do not shorten long fields. This function does, up to a bound.

    Raises:
        ProtocolError: a field is missing, has the wrong type, is out of range or far too large, or the record is of
            another connection.
    """
    try:
        if not isinstance(wire, dict):
            raise TypeError("no map")
        record = JobRecord.from_wire(wire)
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"malformed job record: {error}"[:_SHORT]) from error
    for name, fits in _CHECKS.items():
        if not fits(getattr(record, name)):
            raise ProtocolError(f"malformed job record: its {name} makes no sense")
    if record.connection != connection:
        raise ProtocolError(f"malformed job record: it belongs to connection '{record.connection:.64}'")
    size = (
        len(record.name)
        + len(record.error or "")
        + len((record.queue or {}).get("reason", ""))
        + sum(map(len, record.args))
        + len(record.args)
    )
    if size > MAX_JOB_EVENT:
        raise ProtocolError(f"malformed job record: {size} characters are too many")
    return bounded(record)


def read_revision(value: dict[str, Any]) -> int:
    """The revision in an agent's reply that holds no record.

    Raises:
        ProtocolError: it is of the wrong kind or out of range.
    """
    revision = value.get("revision")
    if not _whole(revision):
        raise ProtocolError("malformed reply: its revision makes no sense")
    return int(revision)  # type: ignore[arg-type]


def read_usage(wire: object) -> tuple[str, float, int]:
    """Uid of a job, and the CPU seconds and bytes of memory that it uses.

    Raises:
        ProtocolError: something is missing, of the wrong kind or out of range.
    """
    if not isinstance(wire, list) or len(wire) != 3:
        raise ProtocolError("a job's usage must be its uid, CPU seconds and bytes")
    uid, cpu_seconds, rss_bytes = wire
    if not isinstance(uid, str) or not _number(cpu_seconds, inf) or not _whole(rss_bytes):
        raise ProtocolError("a job's usage makes no sense")
    return uid, round(cpu_seconds, 3), rss_bytes


def read_sandbox(wire: object) -> tuple[str, int]:
    """Uid of a job, and the bytes in its sandbox.

    Raises:
        ProtocolError: something is missing, of the wrong kind or out of range.
    """
    if not isinstance(wire, list) or len(wire) != 2 or not isinstance(wire[0], str) or not _whole(wire[1]):
        raise ProtocolError("a sandbox's size must be its job's uid and bytes")
    return wire[0], wire[1]


def record_uid(wire: object) -> str | None:
    """The uid in a record that `read_record` refused, None if it has none."""
    uid = wire.get("uid") if isinstance(wire, dict) else None
    return uid if isinstance(uid, str) else None


def _whole(value: Any, low: int = 0, high: int = _LARGEST) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _number(value: Any, below: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < below


def _port(value: Any) -> bool:
    return _whole(value, 1, 65535)


def _time(value: Any) -> bool:
    return _number(value, _YEAR_10000)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _short(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _SHORT


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _ports(value: Any) -> bool:
    return isinstance(value, list) and all(map(_port, value))


def _endpoint(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) - {"port", "host", "socket"}:
        return False
    if "socket" in value:
        return len(value) == 1 and _short(value["socket"])
    return _port(value.get("port")) and _short(value.get("host", ""))


def _queue(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"reason", "expected_start"}
        and _text(value["reason"])
        and (value["expected_start"] is None or _time(value["expected_start"]))
    )


def _resources(value: Any) -> bool:
    return isinstance(value, dict) and read_amounts(value) == value


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "uid": lambda value: isinstance(value, str) and _UID.match(value) is not None,
    "connection": _text,
    "name": _text,
    "revision": _whole,
    "args": _texts,
    "args_shortened": lambda value: isinstance(value, bool),
    "pid": _or_none(_whole),
    "ports": _ports,
    "endpoint": _or_none(_endpoint),
    "path_mode": lambda value: value in ("strip", "keep"),
    "host_mode": lambda value: value in ("public", "local"),
    "exit_code": _or_none(lambda value: _whole(value, -_LARGEST)),
    "signal": _or_none(_short),
    "error": _or_none(_text),
    "created_at": _time,
    "started_at": _or_none(_time),
    "finished_at": _or_none(_time),
    "cpu_seconds": _or_none(lambda value: _number(value, inf)),
    "rss_bytes": _or_none(_whole),
    "owner": _or_none(_short),
    "key": _or_none(_short),
    "digest": _or_none(_short),
    "queue": _or_none(_queue),
    "node": _or_none(_short),
    "resources": _resources,
    "template": _or_none(_short),
    "instead_of": _or_none(lambda value: isinstance(value, str) and _UID.match(value) is not None),
    "client": _or_none(_short),
    "will_start": lambda value: isinstance(value, bool),
}
