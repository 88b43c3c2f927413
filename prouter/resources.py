"""Countable resources of agents, such as CPUs, memory and licences: what an agent has, and what jobs take of it.

A resource is a name and an amount: processors for `cpus`, bytes for `memory`, pieces for all others. The router and
the agent count them; nothing here limits what a job uses.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Any

__all__ = [
    "MOST_NAMES",
    "NAME",
    "UNCOUNTED",
    "Amounts",
    "add",
    "check_amounts",
    "fits",
    "lacking",
    "machine",
    "read_amounts",
    "take",
    "unbounded",
]

Amounts = Mapping[str, float]
"""By name, an amount."""
NAME = r"[A-Za-z][A-Za-z0-9_.-]{0,63}"
"""Pattern of a resource's name."""
MOST_NAMES = 64
"""Resources of one agent or job, at most."""
_MOST = 2**53
"""The largest amount: beyond it, numbers of 64 bits are not exact."""
UNCOUNTED = _MOST
"""What an agent has of a resource that it does not count, because something else does: more than any job asks for."""
_ROUNDING = 1e-9
"""Relative error of sums of fractions, which must not cost a job its place."""


def check_amounts(amounts: Amounts) -> None:
    """Check names and amounts.

    Raises:
        ValueError: a name or an amount makes no sense, or there are too many.
    """
    if len(amounts) > MOST_NAMES:
        raise ValueError(f"at most {MOST_NAMES} resources are expected")
    for name, amount in amounts.items():
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            raise ValueError(
                f"{name!r:.80}: the name of a resource begins with a letter, and has letters, digits, . _ -"
            )
        if not _is_amount(amount):
            raise ValueError(f"{name}: must be a number from 0 to {_MOST}")


def read_amounts(wire: Any) -> dict[str, float]:
    """Amounts that another machine tells; those that make no sense are left out."""
    if not isinstance(wire, dict):
        return {}
    known = [(name, amount) for name, amount in wire.items() if isinstance(name, str) and re.fullmatch(NAME, name)]
    return {name: amount for name, amount in known[:MOST_NAMES] if _is_amount(amount)}


def lacking(wanted: Amounts, total: Amounts, used: Amounts) -> list[str]:
    """Names of the resources of which less than `wanted` is left."""
    return [
        name
        for name, amount in wanted.items()
        if used.get(name, 0) + amount > total.get(name, 0) * (1 + _ROUNDING) + _ROUNDING
    ]


def fits(wanted: Amounts, total: Amounts, used: Amounts) -> bool:
    """Whether as much as `wanted` is left of everything."""
    return not wanted or not lacking(wanted, total, used)


def add(used: dict[str, float], more: Amounts) -> None:
    """Add amounts to a sum."""
    for name, amount in more.items():
        used[name] = used.get(name, 0) + amount


def take(used: dict[str, float], less: Amounts) -> None:
    """Take amounts off a sum. What is nothing then leaves it, so that errors of rounding do not add up."""
    for name, amount in less.items():
        left = used.get(name, 0) - amount
        if left > _ROUNDING * amount:
            used[name] = left
        else:
            used.pop(name, None)


def machine() -> dict[str, float]:
    """`cpus` and `memory` of this machine: the processors that this process may use, and the bytes it has."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpus": len(os.sched_getaffinity(0)), "memory": memory}


def unbounded() -> dict[str, float]:
    """`cpus` and `memory` of an agent that does not count them."""
    return {"cpus": UNCOUNTED, "memory": UNCOUNTED}


def _is_amount(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 <= value <= _MOST
