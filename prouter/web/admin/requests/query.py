"""Query parameters, with errors that name the parameter."""

from __future__ import annotations

import re
import time
from datetime import datetime

import falcon

from prouter.errors import InvalidRequest

__all__ = ["choice", "choices", "flag", "integer", "moment", "octal", "repeated", "seconds", "text"]

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off", ""})
_DECIMAL = re.compile(r"\+?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)


_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)([smhd])", re.ASCII)
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _wrong(name: str, needed: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid request: query parameter '{name}' must be {needed}")


def text(req: falcon.Request, name: str) -> str | None:
    """Return the last value of the parameter, None if it is absent or empty."""
    values = req.params.get(name)
    value = values[-1] if isinstance(values, list) else values
    return value or None


def repeated(req: falcon.Request, name: str) -> list[str]:
    """Return all values of the parameter that are not empty."""
    values = req.params.get(name, [])
    return [value for value in (values if isinstance(values, list) else [values]) if value]


def flag(req: falcon.Request, name: str) -> bool:
    """Return whether the parameter is 1 (or true, yes, on); absent and empty mean no."""
    value = (text(req, name) or "").lower()
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise _wrong(name, "0 or 1")


def integer(req: falcon.Request, name: str, *, low: int = 0, high: int = 2**63 - 1) -> int | None:
    """Return a whole number in [low, high], None if the parameter is absent."""
    value = text(req, name)
    if value is None:
        return None
    if not value.isascii() or not value.isdigit() or len(value) > 19 or not low <= int(value) <= high:
        raise _wrong(name, f"a whole number from {low} to {high}")
    return int(value)


def seconds(req: falcon.Request, name: str, *, high: float = 1e9) -> float | None:
    """Return a number of seconds in [0, high], None if the parameter is absent."""
    value = text(req, name)
    if value is None:
        return None
    if _DECIMAL.fullmatch(value) is None or not float(value) <= high:
        raise _wrong(name, f"a number of seconds from 0 to {high:g}")
    return float(value)


def moment(req: falcon.Request, name: str) -> int | None:
    """Return a time in milliseconds since 1970, None if the parameter is absent.

    It is given by RFC 3339, or as how long ago it is: ``90s``, ``10m``, ``24h``, ``7d``.
    """
    value = text(req, name)
    if value is None:
        return None
    if (ago := _DURATION.fullmatch(value)) is not None:
        return max(0, int(1000 * (time.time() - float(ago[1]) * _UNITS[ago[2]])))
    try:
        return max(0, int(1000 * _rfc3339(value.replace(" ", "+"))))  # a plus sign may come without its encoding
    except (ValueError, OverflowError):
        needed = "a time such as 2030-01-31T12:00:00Z, or how long ago it is, such as 90s, 10m, 24h or 7d"
        raise _wrong(name, needed) from None


def _rfc3339(value: str) -> float:
    """Return seconds since 1970. Raises `ValueError`: it is no time."""
    matched = _MOMENT.fullmatch(value)
    if matched is None:
        raise ValueError(value)
    fraction, zone = (matched[1] or "")[:7], matched[2].upper().replace("Z", "+00:00")
    plain = value[:10] + "T" + value[11:19] + (fraction.ljust(7, "0") if fraction else "") + zone
    return datetime.fromisoformat(plain).timestamp()  # of Python 3.10, which reads no other form


def octal(req: falcon.Request, name: str) -> int | None:
    """Return permission bits, 0 to 0777, given in octal; None if the parameter is absent."""
    value = text(req, name)
    if value is None:
        return None
    digits = value.removeprefix("0o")
    if not digits or len(digits) > 4 or set(digits) - set("01234567") or int(digits, 8) > 0o777:
        raise _wrong(name, "permission bits in octal, at most 777")
    return int(digits, 8)


def choices(req: falcon.Request, name: str, among: tuple[str, ...]) -> list[str]:
    """Return the words given, each one of `among`: the parameter is repeated, or has commas between words."""
    values = [value for given in repeated(req, name) for value in given.split(",")]
    if any(value not in among for value in values):
        raise _wrong(name, f"one or more of {', '.join(among)}")
    return values


def choice(req: falcon.Request, name: str, among: tuple[str, ...]) -> str | None:
    """Return the word given, one of `among`; None if the parameter is absent."""
    value = text(req, name)
    if value is not None and value not in among:
        raise _wrong(name, f"one of {', '.join(among)}")
    return value
