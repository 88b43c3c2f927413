"""One question to the broker at a time, shared by all requests that need its answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar, cast

import gevent
from gevent.event import AsyncResult

from prouter.errors import AgentUnavailable

__all__ = ["Joined"]

Answer = TypeVar("Answer")


class Joined(Generic[Answer]):
    """Answers that are never older than the request that wants one, however many requests there are.

    A request that comes while a question is under way may not take that question's answer, which may have been made
    before the request came. It shares the next question with all others that came meanwhile. So the broker gets at most
    one question per round trip from a worker, whatever its clients do.

    Args:
        ask: asks the broker; blocks its greenlet.
    """

    def __init__(self, ask: Callable[[], Answer]) -> None:
        self._ask = ask
        self._next: AsyncResult[Answer] | None = None
        """The question that is not asked yet."""
        self._asking = False

    def get(self, timeout: float) -> Answer:
        """The answer to a question that is asked from now on. Blocks the greenlet.

        Raises:
            PRouterError: the broker's answer.
            AgentUnavailable: no answer within `timeout` seconds.
        """
        result = self._next
        if result is None:
            result = self._next = AsyncResult()
            if not self._asking:
                self._asking = True
                gevent.spawn(self._run)
        try:
            return cast(Answer, result.get(timeout=timeout))
        except gevent.Timeout:
            raise AgentUnavailable(f"the broker does not answer within {timeout:g} s", retry_after=1) from None

    def _run(self) -> None:
        """Ask for as long as somebody wants to know. A greenlet's edge: errors go to those who ask."""
        while (result := self._next) is not None:
            self._next = None
            try:
                result.set(self._ask())
            except Exception as error:
                result.set_exception(error)
        self._asking = False
