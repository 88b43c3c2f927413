"""Byte ranges and preconditions of downloads (RFC 9110 sections 13 and 14), without I/O."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate

from prouter.conditions import entity_tags, http_date, matches
from prouter.errors import PreconditionFailed, RangeNotSatisfiable

__all__ = ["Validators", "byte_ranges", "etag_in"]

MAX_RANGES = 32
"""Ranges in one request; for more, the response is the whole file (RFC 9110 section 17.15)."""

_SPEC = re.compile(r"([0-9]{0,40})-([0-9]{0,40})")


def etag_in(header: str, etag: str, *, weak: bool) -> bool:
    """Return whether a list of entity tags, or ``*``, matches `etag`; a malformed list does not.

    Args:
        weak: whether to compare weakly (If-None-Match) or strongly (If-Match).
    """
    tags = entity_tags(header)
    return tags is not None and matches(tags, etag, weak=weak)


@dataclass(frozen=True, slots=True)
class Validators:
    """Validators of a file's present content.

    Attributes:
        etag: strong entity tag with its quotes.
        mtime_ns: nanoseconds since the epoch.
    """

    etag: str
    mtime_ns: int

    @property
    def last_modified(self) -> str:
        """Value of Last-Modified: whole seconds, not later than now (RFC 9110 section 8.8.2.1)."""
        return formatdate(min(self.mtime_ns // 10**9, int(time.time())), usegmt=True)

    def not_modified(self, headers: Mapping[str, str]) -> bool:
        """Return whether the response to a GET or HEAD with these headers is 304 (RFC 9110 section 13.2.2).

        Args:
            headers: by upper-case name, as `falcon.Request.headers` has them.

        Raises:
            PreconditionFailed: If-Match or If-Unmodified-Since does not hold.
        """
        match = headers.get("IF-MATCH")
        if match is not None:
            if not etag_in(match, self.etag, weak=False):
                raise PreconditionFailed("the file has changed: its entity tag is not the one in If-Match")
        elif (since := http_date(headers.get("IF-UNMODIFIED-SINCE", ""))) is not None and self._mtime > since:
            raise PreconditionFailed("the file was modified after the time in If-Unmodified-Since")
        none_match = headers.get("IF-NONE-MATCH")
        if none_match is not None:
            return etag_in(none_match, self.etag, weak=True)
        modified_since = http_date(headers.get("IF-MODIFIED-SINCE", ""))
        return modified_since is not None and self._mtime <= modified_since

    def range_applies(self, if_range: str | None) -> bool:
        """Return whether Range applies under If-Range (RFC 9110 section 13.1.5); a date has to match exactly."""
        if if_range is None:
            return True
        if if_range.lstrip().startswith(('"', "W/")):
            return if_range.strip() == self.etag
        return http_date(if_range) == self._mtime

    @property
    def _mtime(self) -> float:
        return float(self.mtime_ns // 10**9)


def byte_ranges(header: str, size: int) -> list[tuple[int, int]] | None:
    """Return the ranges of a Range header as ``[start, stop)``, in order; overlapping or adjacent ones are joined.

    Returns:
        The ranges, None if the header is to be ignored: another unit, malformed, or too many ranges.

    Raises:
        RangeNotSatisfiable: no range lies within the file.
    """
    unit, separator, specs = header.partition("=")
    if not separator or unit.strip().lower() != "bytes":
        return None
    found: list[tuple[int, int]] = []
    asked = [spec.strip() for spec in specs.split(",") if spec.strip()]  # empty elements do not count (section 5.6.1.2)
    if not asked or len(asked) > MAX_RANGES:
        return None
    for spec in asked:
        matched = _SPEC.fullmatch(spec)
        if matched is None or spec == "-":
            return None
        first, last = matched.groups()
        if not first:
            start, stop = max(0, size - int(last)), size
        else:
            start, stop = int(first), min(int(last) + 1, size) if last else size
            if last and int(last) < int(first):
                return None
        if start < stop:
            found.append((start, stop))
    if not found and not size and any(spec.startswith("-") and spec.strip("-0") for spec in asked):
        return None  # an empty suffix exists, but no Content-Range can describe it
    if not found:
        raise RangeNotSatisfiable(f"the file has {size} bytes, and no requested range lies within")
    return _joined(found)


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join ranges that overlap or touch (RFC 9110 section 15.3.7.2), and keep the order of the others."""
    joined: list[tuple[int, int]] = []
    for start, stop in ranges:
        for known in [known for known in joined if known[0] <= stop and start <= known[1]]:
            joined.remove(known)
            start, stop = min(start, known[0]), max(stop, known[1])
        joined.append((start, stop))
    return joined
