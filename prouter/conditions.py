"""Conditional requests (RFC 9110 section 13), without I/O. The API reads the header fields, the agent compares.

A write is carried out only if its conditions hold at the moment at which the file gets its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from prouter.errors import InvalidRequest, PreconditionFailed

__all__ = ["ANY", "Conditions", "entity_tags", "http_date", "matches"]

ANY = ("*",)
"""What `entity_tags` makes of ``*``."""

_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_TAGS = re.compile(rf"[ \t,]*(?:{_TAG}[ \t]*(?:,[ \t,]*|\Z))*")
_EACH = re.compile(_TAG)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_DAY = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_LONG_DAY = "(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
_TIME = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
_DATES = (
    re.compile(rf"{_DAY}, (?P<day>\d\d) {_MONTH} (?P<year>\d{{4}}) {_TIME} GMT", re.ASCII),
    re.compile(rf"{_LONG_DAY}, (?P<day>\d\d)-{_MONTH}-(?P<year>\d\d) {_TIME} GMT", re.ASCII),
    re.compile(rf"{_DAY} {_MONTH} (?P<day>[ \d]\d) {_TIME} (?P<year>\d{{4}})", re.ASCII),
)
_TWO_DIGITS = 100
_FUTURE = 50
"""Years that a date with a two-digit year may lie ahead; beyond that it means the century before (RFC 9110 section
5.6.7)."""


def http_date(text: str) -> int | None:
    """Return an HTTP date, in any of the formats of RFC 9110 section 5.6.7, as seconds since the epoch; else None."""
    found = next((match for pattern in _DATES if (match := pattern.fullmatch(text.strip(" \t")))), None)
    if found is None:
        return None
    year, second = int(found["year"]), int(found["second"])
    if len(found["year"]) == 2:
        now = datetime.now(timezone.utc).year
        year += now - now % _TWO_DIGITS
        if year > now + _FUTURE:
            year -= _TWO_DIGITS
    leap = second == 60  # A leap second, which datetime does not know.
    try:
        month = _MONTHS.index(found["month"]) + 1
        day, hour, minute = int(found["day"]), int(found["hour"]), int(found["minute"])
        when = datetime(year, month, day, hour, minute, second - leap, tzinfo=timezone.utc)
    except ValueError:
        return None
    return int(when.timestamp()) + leap


def entity_tags(field: str) -> tuple[str, ...] | None:
    """Return the entity tags of If-Match or If-None-Match with their ``W/``; `ANY` for ``*``, None if malformed."""
    if field.strip(" \t") == "*":
        return ANY
    if _TAGS.fullmatch(field) is None:
        return None
    return tuple(_EACH.findall(field)) or None


def matches(tags: tuple[str, ...], etag: str | None, *, weak: bool) -> bool:
    """Whether one of the `tags` belongs to a file that exists (RFC 9110 section 8.8.3.2).

    Args:
        etag: the file's entity tag; None for a directory, which has none.
        weak: whether to compare weakly (If-None-Match) or strongly (If-Match).
    """
    if tags == ANY:
        return True
    if etag is None:
        return False
    if weak:
        return etag.removeprefix("W/") in {tag.removeprefix("W/") for tag in tags}
    return not etag.startswith("W/") and etag in tags


@dataclass(frozen=True, slots=True)
class Conditions:
    """Conditions of a request that changes a file.

    Attributes:
        match: entity tags, one of which the file must have now. Empty if the field was malformed, so that the condition
            fails.
        none_match: entity tags, none of which the file may have; `ANY` means that there may be no file.
        unmodified_since: seconds since the epoch after which the file may not have been modified; ignored with `match`.
    """

    match: tuple[str, ...] | None = None
    none_match: tuple[str, ...] | None = None
    unmodified_since: int | None = None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Conditions | None:
        """Return the conditions in a request's header fields, None if there are none.

        Args:
            headers: by upper-case name, as `falcon.Request.headers` has them.

        Raises:
            InvalidRequest: If-None-Match is malformed. To ignore it could overwrite the file that it should protect.
        """
        match, none_match = headers.get("IF-MATCH"), headers.get("IF-NONE-MATCH")
        excluded = None if none_match is None else entity_tags(none_match)
        if none_match is not None and excluded is None:
            raise InvalidRequest('Invalid request: If-None-Match must be * or a list of entity tags such as "abc"')
        found = cls(
            None if match is None else entity_tags(match) or (),
            excluded,
            http_date(headers.get("IF-UNMODIFIED-SINCE", "")),
        )
        return None if found == cls() else found

    @property
    def forbids_existing(self) -> bool:
        """Whether there may be no file (``If-None-Match: *``)."""
        return self.none_match == ANY

    def check(self, *, exists: bool, etag: str | None = None, mtime: float | None = None) -> None:
        """Compare the conditions with a file, in the order of RFC 9110 section 13.2.2.

        Args:
            exists: whether there is a file.
            etag: its entity tag, None if it has none.
            mtime: its modification time in seconds since the epoch, None if it has none that counts.

        Raises:
            PreconditionFailed: a condition does not hold.
        """
        if self.match is not None:
            if not exists or not matches(self.match, etag, weak=False):
                raise PreconditionFailed(
                    "If-Match does not hold: " + ("it was changed meanwhile" if exists else "there is nothing")
                )
        elif self.unmodified_since is not None and mtime is not None and int(mtime) > self.unmodified_since:
            raise PreconditionFailed("If-Unmodified-Since does not hold: it was modified since")
        if self.none_match is not None and exists and matches(self.none_match, etag, weak=True):
            raise PreconditionFailed("If-None-Match does not hold: it exists already")

    def to_wire(self) -> dict[str, Any]:
        """Return the conditions as a map for msgpack."""
        return {"match": self.match, "none_match": self.none_match, "unmodified_since": self.unmodified_since}

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Conditions:
        """Rebuild conditions from the map that `to_wire` made.

        Raises:
            InvalidRequest: the map is another one.
        """
        match, none_match, since = wire.get("match"), wire.get("none_match"), wire.get("unmodified_since")
        for tags in (match, none_match):
            if tags is not None and not (isinstance(tags, (list, tuple)) and all(isinstance(tag, str) for tag in tags)):
                raise InvalidRequest("Invalid request: entity tags must be a list of texts")
        if since is not None and not isinstance(since, int):
            raise InvalidRequest("Invalid request: unmodified_since must be a number")
        return cls(None if match is None else tuple(match), None if none_match is None else tuple(none_match), since)
