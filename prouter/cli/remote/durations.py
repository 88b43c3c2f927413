"""Durations and sizes, as people write and read them."""

from __future__ import annotations

import re
from datetime import datetime, timezone

import click

__all__ = ["DURATION", "age", "size", "span"]

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)([smhd]?)", re.ASCII)
_STEPS = ((86400, "d"), (3600, "h"), (60, "m"))
_SIZES = "KMGTPE"


class _Duration(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = _DURATION.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is no duration; write it like 90s, 30m, 24h, 7d, or 1.5 for seconds", param, ctx)
        return float(match[1]) * _SECONDS[match[2]]


DURATION = _Duration()
"""A click type: seconds as a float, from ``90s``, ``30m``, ``24h``, ``7d`` or a number of seconds."""


def span(seconds: float) -> str:
    """Return a duration in its largest unit: ``42s``, ``7m``, ``3h``, ``12d``."""
    for length, unit in _STEPS:
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(0, int(seconds))}s"


def age(moment: datetime | None) -> str:
    """Return how long ago a moment is; ``-`` for none."""
    return "-" if moment is None else span((datetime.now(timezone.utc) - moment).total_seconds())


def size(count: int | None) -> str:
    """Return a number of bytes with at most three digits and a unit of 1024: ``812``, ``4.1K``, ``37M``."""
    if count is None:
        return "-"
    value, unit = float(count), ""
    for following in _SIZES:
        if value < 999.5:
            break
        value, unit = value / 1024, following
    return f"{value:.1f}{unit}" if unit and value < 9.95 else f"{value:.0f}{unit}"
