"""What routers may ask of the agent: calls about jobs, answered by the job manager."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from prouter.agent.jobs.manager import JobManager
from prouter.errors import AgentUnavailable, InvalidRequest, NotFound, PRouterError
from prouter.jobs import JobRecord

__all__ = ["Service"]

log = logging.getLogger("prouter.agent")


class Service:
    """Carries out calls; each blocks its own greenlet at most. All may be repeated and are done once.

    Args:
        manager: the agent's jobs.
        on_drain: called when draining begins or ends.

    Attributes:
        draining: whether new jobs are refused.
    """

    def __init__(self, manager: JobManager, on_drain: Callable[[], None]) -> None:
        self.draining = False
        self._manager = manager
        self._on_drain = on_drain
        self._about_jobs: dict[str, Callable[[dict[str, Any]], JobRecord]] = {
            "job.create": self._create,
            "job.start": self._start,
            "job.remove": lambda args: manager.remove(_text(args, "uid")),
            "job.signal": lambda args: manager.signal(_text(args, "uid"), _text(args, "signal")),
            "job.stop": lambda args: manager.stop(_text(args, "uid"), _seconds(args, "grace")),
            "job.usage": lambda args: manager.usage(_text(args, "uid")),
        }

    def carry_out(self, op: str, args: dict[str, Any]) -> dict[str, Any]:
        """The answer to a call.

        Raises:
            PRouterError: why there is none.
        """
        if op == "drain":
            self.drain(bool(args.get("on")))
            return {}
        handler = self._about_jobs.get(op)
        if handler is None:
            raise PRouterError(f"this agent does not know the call '{op}'", code="unknown_call")
        return {"record": handler(args).to_wire()}

    def drain(self, on: bool) -> None:
        """Take no new jobs, or take them again."""
        if on != self.draining:
            self.draining = on
            log.info("event=%s", "draining" if on else "resumed")
            self._on_drain()

    def _create(self, args: dict[str, Any]) -> JobRecord:
        uid = _text(args, "uid")
        if self.draining:
            try:
                return self._manager.record(uid)
            except NotFound:
                raise AgentUnavailable("agent is draining and takes no new jobs", job=uid, retry_after=30) from None
        return self._manager.create(uid, _text(args, "connection"), _text(args, "name"))

    def _start(self, args: dict[str, Any]) -> JobRecord:
        request = args.get("request")
        if not isinstance(request, dict):
            raise InvalidRequest("Invalid request: request must be a map")
        return self._manager.start(_text(args, "uid"), request, _text(args, "request_id"))


def _text(args: dict[str, Any], key: str) -> str:
    value = args.get(key)
    if not isinstance(value, str):
        raise InvalidRequest(f"Invalid request: {key} must be a text")
    return value


def _seconds(args: dict[str, Any], key: str) -> float:
    value = args.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= 0:
        raise InvalidRequest(f"Invalid request: {key} must be a number of seconds")
    return float(value)
