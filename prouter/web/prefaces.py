"""Checks of the control messages that agents send before and after the bytes of a stream (docs/fabric.md, *Targets*).

An agent may be of another version, or hostile. So a malformed message is its error (502), not the router's (500).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import gevent

from prouter.errors import AgentTimeout, ProtocolError

if TYPE_CHECKING:
    from prouter.config import RouterConfig

__all__ = ["checked_preface", "checked_result", "patience_for", "within"]

_LARGEST = 2**63 - 1
_YEAR_10000 = 253_402_300_800 * 10**9
_ETAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e]{0,256}"')
_PATIENCE = 120.0
"""Longest time an agent may take to begin its reply, seconds; a link that is away for a moment is no failure."""


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST


def _size_if_known(value: Any) -> bool:
    return value is None or _whole(value)


def _time(value: Any) -> bool:
    return type(value) is int and -_YEAR_10000 < value < _YEAR_10000


def _etag(value: Any) -> bool:
    return type(value) is str and _ETAG.fullmatch(value) is not None


def _truth(value: Any) -> bool:
    return type(value) is bool


_FILE = {"size": _whole, "mtime_ns": _time, "etag": _etag}
_Checks = Mapping[str, Callable[[Any], bool]]
_PREFACES: Mapping[str, _Checks] = {
    "file.read": {**_FILE, "offset": _whole, "length": _whole},
    "file.mkdir": {"created": _truth},
    "archive.read": {"size": _size_if_known},
    "log": {"offset": _whole},
}
_RESULTS: Mapping[str, _Checks] = {"file.write": {"etag": _etag}}


def checked_preface(target: dict[str, Any], preface: dict[str, Any]) -> dict[str, Any]:
    """Return the preface of a stream that was opened with `target`, if it is well formed.

    Raises:
        ProtocolError: a field is missing or invalid, or the preface is about other bytes than were requested.
    """
    kind = str(target["kind"]).removesuffix(".if")
    _check(kind, _PREFACES.get(kind, {}), preface)
    if kind == "file.read":
        size, offset, length = preface["size"], preface["offset"], preface["length"]
        asked = target.get("length")
        if offset != target["offset"] or offset + length > size or (asked is not None and length > asked):
            raise ProtocolError(f"the agent's reply to {kind} is about other bytes than were requested")
    return preface


def checked_result(target: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """Return the result of an upload that was opened with `target`, if it is well formed.

    Raises:
        ProtocolError: a field is missing or invalid.
    """
    kind = str(target["kind"]).removesuffix(".if")
    _check(kind, _RESULTS.get(kind, {}), result)
    return result


def _check(kind: str, checks: _Checks, message: dict[str, Any]) -> None:
    for name, fits in checks.items():
        if name not in message:
            raise ProtocolError(f"the agent's reply to {kind} has no {name}")
        if not fits(message[name]):
            raise ProtocolError(f"the agent's reply to {kind} is malformed: its {name} is {message[name]!r:.64}")


def patience_for(config: RouterConfig) -> float | None:
    """Return the seconds an agent may take to begin a reply or to read more of an upload; None for no limit."""
    limit = config.control.response_timeout
    return min(limit, _PATIENCE) if limit else None


@contextmanager
def within(seconds: float | None, job: str) -> Iterator[None]:
    """Limit how long a block waits for an agent.

    Raises:
        AgentTimeout: the block took longer.
    """
    timer = gevent.Timeout(seconds)
    try:
        with timer:
            yield
    except gevent.Timeout as timeout:
        if timeout is not timer:
            raise
        raise AgentTimeout(f"the job's agent did not reply within {seconds:g} s", job=job, retry_after=5) from None
