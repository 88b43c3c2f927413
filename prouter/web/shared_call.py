"""A call to the broker that simultaneous requests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar, cast

import gevent
from gevent.event import AsyncResult

from prouter.errors import AgentUnavailable

__all__ = ["SharedCall"]

Reply = TypeVar("Reply")


class SharedCall(Generic[Reply]):
    """A call whose replies are never older than the request that needs one, however many requests there are.

    A request that arrives while a call is in progress must not take that call's reply, which the broker may have made
    before. It shares the next call with all others that arrived meanwhile. So a worker makes at most one call per round
    trip, whatever its clients do.

    Args:
        ask: calls the broker; blocks its greenlet.
    """

    def __init__(self, ask: Callable[[], Reply]) -> None:
        self._ask = ask
        self._next: AsyncResult[Reply] | None = None
        """The result of the call that is to be made next."""
        self._asking = False

    def get(self, timeout: float) -> Reply:
        """Return the reply to a call that is made from now on. Blocks the greenlet.

        Raises:
            PRouterError: the broker's reply is an error.
            AgentUnavailable: no reply within `timeout` seconds.
        """
        result = self._next
        if result is None:
            result = self._next = AsyncResult()
            if not self._asking:
                self._asking = True
                gevent.spawn(self._run)
        try:
            return cast(Reply, result.get(timeout=timeout))
        except gevent.Timeout:
            detail = f"the broker does not reply within {timeout:g} s: it may be restarting"
            raise AgentUnavailable(detail, retry_after=1) from None

    def _run(self) -> None:
        """Make calls while requests wait for one. Runs in a greenlet, whose errors go to those requests."""
        while (result := self._next) is not None:
            self._next = None
            try:
                result.set(self._ask())
            except Exception as error:
                result.set_exception(error)
        self._asking = False
