"""Values that each process makes for itself, because a fork must not share them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["PerProcess"]

T = TypeVar("T")


class PerProcess(Generic[T]):
    """A value with connections: two processes that use the same one would read each other's answers.

    A forked child makes its own, and drops its parent's without closing it: another thread of the parent may have held
    a lock of it at the fork, which nobody releases in the child.

    Args:
        make: returns a new value.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._value = make()
        self._process = os.getpid()

    def get(self) -> T:
        """Return this process's value."""
        if self._process != os.getpid():
            self._value = self._make()
            self._process = os.getpid()
        return self._value
