"""Requirements on the properties of agents: ``{"gpus": {">=": 2}, "zone": {"in": ["a", "b"]}, "cuda": true}``.

A requirement is a value that the property must equal, or a map from operators to operands, all of which must hold. The
operators ``>=``, ``<=``, ``>`` and ``<`` compare numbers; such a comparison may also be written as a text: ``">=2"``.
``in`` holds if the property is one of the values in a list; if the property is a list, one of its items must be.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["check_require", "in_words", "meets", "same"]

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_TEXT = re.compile(r"(>=|<=|>|<)\s*(-?\d+(?:\.\d+)?)", re.ASCII)


def check_require(require: Mapping[str, Any]) -> dict[str, Any]:
    """Return requirements with every comparison as a map.

    Raises:
        ValueError: an operator is unknown, or has an operand of the wrong kind.
    """
    return {name: _checked(name, wanted) for name, wanted in require.items()}


def _checked(name: str, wanted: Any) -> Any:
    if isinstance(wanted, str):
        match = _TEXT.fullmatch(wanted)
        return {match[1]: float(match[2]) if "." in match[2] else int(match[2])} if match else wanted
    if not isinstance(wanted, dict):
        return wanted
    if not wanted:
        raise ValueError(f"{name}: an operator is expected: >=, <=, >, < or in")
    for symbol, operand in wanted.items():
        if symbol == "in":
            if not isinstance(operand, list) or not operand:
                raise ValueError(f"{name}: 'in' takes a list of values")
        elif symbol not in _COMPARISONS:
            raise ValueError(f"{name}: unknown operator {symbol!r:.40}; expected is >=, <=, >, < or in")
        elif not _is_number(operand):
            raise ValueError(f"{name}: {symbol!r} takes a number")
    return wanted


def meets(properties: Mapping[str, Any], require: Mapping[str, Any]) -> bool:
    """Whether properties fulfil checked requirements."""
    return all(name in properties and _holds(properties[name], wanted) for name, wanted in require.items())


def _holds(own: Any, wanted: Any) -> bool:
    if not isinstance(wanted, dict):
        return same(own, wanted)
    return all(_compares(own, symbol, operand) for symbol, operand in wanted.items())


def _compares(own: Any, symbol: str, operand: Any) -> bool:
    if symbol == "in":
        values = own if isinstance(own, list) else [own]
        return any(same(value, one) for value in values for one in operand)
    compare = _COMPARISONS.get(symbol)
    return compare is not None and _is_number(own) and compare(own, operand)


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal. Unlike in Python, true does not equal 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def in_words(require: Mapping[str, Any]) -> str:
    """Requirements as an error shows them: ``gpus >= 2, zone in ['a', 'b'], cuda = True``."""
    told: list[str] = []
    for name, wanted in require.items():
        if isinstance(wanted, dict):
            told += [f"{name} {symbol} {operand}" for symbol, operand in wanted.items()]
        else:
            told.append(f"{name} = {wanted!r}")
    return ", ".join(told)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
