"""Query parameters, with errors that name the parameter."""

from __future__ import annotations

import re

import falcon

from prouter.errors import InvalidRequest

__all__ = ["choice", "choices", "flag", "integer", "octal", "repeated", "seconds", "text"]

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off", ""})
_DECIMAL = re.compile(r"\+?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)


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
