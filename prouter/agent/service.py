"""The calls of routers, carried out by the job manager.

A job's record reaches the router by the events `job` and `jobs`. A call that says ``answer: "revision"`` is answered
with the revision of the record alone, if that is still the job's newest record: then an event has told it, or the list
of jobs on the next path will. Routers of earlier versions do not say so, and are answered with the record.

A creation that is given a job of the pool is answered with the job's ``uid`` in addition: it is not the one that the
router has chosen.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gevent.event import Event

from prouter.agent.jobs.claims import Claim, Claims
from prouter.agent.jobs.manager import JobManager
from prouter.agent.jobs.origin import Origin
from prouter.errors import AgentUnavailable, InvalidRequest, NotFound, PRouterError
from prouter.jobs import JobRecord
from prouter.resources import read_amounts

__all__ = ["Service"]

log = logging.getLogger("prouter.agent")


class Service:
    """Carries out calls, each in a greenlet of its own. A call that is repeated is carried out once.

    Args:
        manager: the agent's jobs.
        on_drain: called when draining begins or ends.

    Attributes:
        draining: whether the agent refuses new jobs.
    """

    def __init__(self, manager: JobManager, on_drain: Callable[[], None]) -> None:
        self.draining = False
        self._manager = manager
        self._on_drain = on_drain
        self._claims = Claims()
        self._closed = False
        self._about_jobs: dict[str, Callable[[dict[str, Any]], JobRecord]] = {
            "job.create": self._create,
            "job.start": self._start,
            "job.remove": self._remove,
            "job.signal": lambda args: manager.signal(_text(args, "uid"), _text(args, "signal")),
            "job.stop": lambda args: manager.stop(_text(args, "uid"), _seconds(args, "grace")),
            "job.usage": lambda args: manager.usage(_text(args, "uid")),
        }

    def carry_out(self, op: str, args: dict[str, Any]) -> dict[str, Any]:
        """Carry out a call and return the reply.

        Raises:
            PRouterError: the call failed.
        """
        if self._closed:
            Event().wait()
        if op == "drain":
            self.drain(bool(args.get("on")))
            return {}
        if op == "key.claim":
            return self._claim(args)
        if op == "sync":
            return {}  # Events that were sent before this reply arrive before it.
        handler = self._about_jobs.get(op)
        if handler is None:
            text = f"this agent does not know the call '{op}'; its version may be older than the router's"
            raise PRouterError(text, code="unknown_call")
        record = handler(args)
        other = {"uid": record.uid} if record.instead_of is not None and record.instead_of == args.get("uid") else {}
        if args.get("answer") == "revision" and self._told(record):
            return {"revision": record.revision, **other}
        return {"record": record.to_wire(), **other}

    def _told(self, record: JobRecord) -> bool:
        """Whether this is the newest record of its job, so that routers know it from an event."""
        try:
            return self._manager.record(record.uid).revision == record.revision
        except NotFound:
            return False

    def close(self, *, comes_back: bool) -> None:
        """Refuse new jobs, or if the agent comes back, answer no call: routers send it again then."""
        if comes_back:
            self._closed = True
        else:
            self.drain(True)

    def drain(self, on: bool) -> None:
        """Refuse new jobs from now on, or accept them again."""
        if on != self.draining:
            self.draining = on
            log.info("event=%s", "draining" if on else "resumed")
            self._on_drain()

    def _create(self, args: dict[str, Any]) -> JobRecord:
        uid = _text(args, "uid")
        if self.draining:
            known = self._manager.created(uid)
            if known is None:
                raise AgentUnavailable("the agent is draining and takes no new jobs", job=uid, retry_after=30)
            return known
        router = args.get("router")
        asks = str(router.get("uid", "")) if isinstance(router, dict) else ""
        resources, template = read_amounts(args.get("resources")), _given(args, "template")
        origin = Origin(_given(args, "owner"), _given(args, "key"), _given(args, "digest"), asks, resources, template)
        origin = replace(origin, client=_given(args, "client"), will_start=args.get("will_start") is True)
        return self._manager.create(uid, _text(args, "connection"), _text(args, "name"), origin)

    def _remove(self, args: dict[str, Any]) -> JobRecord:
        uid = _text(args, "uid")
        return self._manager.remove(uid, unwanted_by=_given(args, "unwanted_by"), withdraw=args.get("withdraw") is True)

    def _claim(self, args: dict[str, Any]) -> dict[str, Any]:
        """Claim an idempotency key for a job, unless it has given one."""
        key = _text(args, "key")
        made = self._manager.made_by(key)
        if made is not None:
            return {"job": made.uid, "connection": made.connection, "digest": made.digest or "", "age": 0.0}
        claim = Claim(_text(args, "digest"), _text(args, "job"), _text(args, "connection"))
        known = self._claims.claim(key, claim, _text(args, "instead"))
        age = time.monotonic() - known.made
        return {"job": known.job, "connection": known.connection, "digest": known.digest, "age": age}

    def _start(self, args: dict[str, Any]) -> JobRecord:
        request = args.get("request")
        if not isinstance(request, dict):
            raise InvalidRequest("Invalid request: request must be a map")
        wait = _seconds(args, "wait") if args.get("wait") is not None else None
        return self._manager.start(_text(args, "uid"), request, _text(args, "request_id"), wait)


def _given(args: dict[str, Any], key: str) -> str | None:
    value = args.get(key)
    return value if isinstance(value, str) else None


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
