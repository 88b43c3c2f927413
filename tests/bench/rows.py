"""Rows of the table: what is measured, in which unit, and with which bounds."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.bench.stack import NAMES, OTHER_LINKS, Stack

__all__ = ["ALL", "PROUTER", "Bound", "Probe", "Row", "Settings", "at_least", "at_most"]

ALL = (*NAMES, *OTHER_LINKS)
PROUTER = ("prouter1", "prouter2", *OTHER_LINKS)


@dataclass(frozen=True)
class Settings:
    """Durations and amounts of a run.

    Attributes:
        rounds: how often each stack is measured, in turns; the table shows medians.
        seconds: of each measurement by time.
        bulk: bytes of big transfers.
        sockets: idle WebSockets to hold.
        agents: connected agents in the rows about many of them.
    """

    rounds: int = 3
    seconds: float = 2.0
    bulk: int = 512 << 20
    sockets: int = 5000
    agents: int = 2000


QUICK = Settings(rounds=1, seconds=1.0, bulk=128 << 20, sockets=500, agents=200)


@dataclass(frozen=True)
class Bound:
    """A bound of a stack's value: a number, or a multiple of another stack's value.

    Attributes:
        sign: ``>=`` or ``<=``.
        number: the number, or the factor when `of` is set, or what may be added to `above`.
        of: name of the stack whose value times `number` is the limit.
        above: name of the stack whose value plus `number` is the limit.
        stack: name of the stack that has to hold it.
    """

    sign: str
    number: float
    of: str | None = None
    above: str | None = None
    stack: str = "prouter2"

    def limit(self, values: Mapping[str, float]) -> float | None:
        """Return the limit in the row's unit; None if the stack to compare with was not measured."""
        if self.of is not None:
            return values[self.of] * self.number if self.of in values else None
        if self.above is not None:
            return values[self.above] + self.number if self.above in values else None
        return self.number

    def holds(self, values: Mapping[str, float]) -> bool | None:
        """Whether the bound holds; None if that is not known."""
        limit = self.limit(values)
        if limit is None or self.stack not in values:
            return None
        compare = operator.ge if self.sign == ">=" else operator.le
        return bool(compare(values[self.stack], limit))

    def text(self) -> str:
        """Format the bound for the table."""
        sign = "≥" if self.sign == ">=" else "≤"
        if self.of is not None:
            return f"{sign} {self.number:g} x {self.of}"
        return f"{sign} {self.number:,g}" if self.above is None else f"{sign} {self.above} + {self.number:g}"


def at_least(number: float, of: str | None = None) -> Bound:
    """Return a lower bound."""
    return Bound(">=", number, of=of)


def at_most(number: float, of: str | None = None, above: str | None = None) -> Bound:
    """Return an upper bound."""
    return Bound("<=", number, of=of, above=above)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        value: name of the probe's value that it shows.
        documented: the original's figure, where one is known; for reference only, from another machine.
        higher: whether higher is better.
    """

    key: str
    title: str
    unit: str
    value: str
    must: Bound | None = None
    strive: Bound | None = None
    documented: str = ""
    higher: bool = True


@dataclass(frozen=True)
class Probe:
    """One measurement of one stack, which gives the values of several rows.

    Attributes:
        run: measures; returns values by name. With the value ``requests`` the runner adds ``cpu_us``, CPU microseconds
            per request of all processes but the job.
        stacks: names of the stacks it makes sense for.
        once: whether one round is enough, because it takes long and does not vary.
    """

    key: str
    run: Callable[[Stack, Settings], dict[str, float]]
    rows: tuple[Row, ...]
    stacks: tuple[str, ...] = ALL
    once: bool = False
