"""What routers may ask of the agent: calls about jobs, answered by the job manager."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from prouter.agent.manager import JobManager
from prouter.errors import AgentUnavailable, InvalidRequest, PRouterError
from prouter.fabric.calls import Request

__all__ = ["Service"]

log = logging.getLogger("prouter.agent")


class Service:
    """Carries out calls; each blocks its own greenlet.

    Args:
        manager: the agent's jobs.
        on_drain: called when draining begins or ends.
    """

    def __init__(self, manager: JobManager, on_drain: Callable[[], None]) -> None:
        self.draining = False
        self._manager = manager
        self._on_drain = on_drain
        self._calls: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "job.create": self._create,
            "job.start": self._start,
            "job.remove": lambda args: {"record": manager.remove(_uid(args)).to_wire()},
            "job.signal": lambda args: {"record": manager.signal(_uid(args), str(args.get("signal"))).to_wire()},
            "job.stop": self._stop,
            "job.usage": lambda args: {"record": manager.usage(_uid(args)).to_wire()},
            "drain": self._drain,
        }

    def call(self, request: Request) -> dict[str, Any]:
        """The answer to a call.

        Raises:
            PRouterError: why there is none.
        """
        carry_out = self._calls.get(request.op)
        if carry_out is None:
            raise PRouterError(f"this agent does not know the call '{request.op}'", code="unknown_call")
        return carry_out(request.args)

    def _create(self, args: dict[str, Any]) -> dict[str, Any]:
        uid = _uid(args)
        known = any(record.uid == uid for record in self._manager.records())
        if self.draining and not known:
            raise AgentUnavailable("the agent is draining and takes no new jobs", retry_after=30)
        return {"record": self._manager.create(uid, str(args["connection"]), str(args["name"])).to_wire()}

    def _start(self, args: dict[str, Any]) -> dict[str, Any]:
        request, request_id = args.get("request"), args.get("request_id")
        if not isinstance(request, dict) or not isinstance(request_id, str):
            raise InvalidRequest("Invalid request: job.start needs request and request_id")
        return {"record": self._manager.start(_uid(args), request, request_id).to_wire()}

    def _stop(self, args: dict[str, Any]) -> dict[str, Any]:
        grace = args.get("grace")
        if not isinstance(grace, (int, float)):
            raise InvalidRequest("Invalid request: grace must be a number of seconds")
        return {"record": self._manager.stop(_uid(args), float(grace)).to_wire()}

    def _drain(self, args: dict[str, Any]) -> dict[str, Any]:
        on = bool(args.get("on"))
        if on != self.draining:
            self.draining = on
            log.info("event=%s", "draining" if on else "resumed")
            self._on_drain()
        return {}


def _uid(args: dict[str, Any]) -> str:
    uid = args.get("uid")
    if not isinstance(uid, str):
        raise InvalidRequest("Invalid request: a job's uid is missing")
    return uid
