"""WebSocket bridges of all workers: lists of them, and their end."""

from __future__ import annotations

from typing import Any

from prouter.broker.base.env import Done, Env
from prouter.broker.links.workers import Worker, Workers
from prouter.errors import InvalidRequest, NotFound, ProtocolError
from prouter.fabric.bounds import MAX_PAGE
from prouter.fabric.calls import event_frame
from prouter.fabric.frames import pack_body

__all__ = ["Bridges"]


class Bridges:
    """The bridges as the workers tell them. Each worker sends its whole list when it links and after every change."""

    def __init__(self, env: Env, workers: Workers) -> None:
        self._env = env
        self._workers = workers

    def told(self, worker: Worker, body: dict[str, Any]) -> None:
        """Take a part of a worker's list; the first part replaces the list of before.

        Raises:
            ProtocolError: it is malformed.
        """
        bridges = body.get("bridges")
        if not isinstance(bridges, list) or not all(isinstance(entry, dict) and "uid" in entry for entry in bridges):
            raise ProtocolError("bridges must be a list of maps with a uid")
        worker.bridges = bridges if body.get("first", True) else worker.bridges + bridges

    def listed(self, args: dict[str, Any], done: Done, now: float) -> None:
        """Answer with a page of a job's bridges, the oldest first, and the cursor of the next page, None at the end."""
        after = args.get("cursor")
        if after is not None and not isinstance(after, list):
            raise InvalidRequest("Invalid request: the cursor is not one that this router gave")
        page: list[dict[str, Any]] = []
        left = MAX_PAGE
        for entry in sorted((entry for _, entry in self._of(args)), key=_order):
            if after is not None and _order(entry) <= after:
                continue
            left -= len(pack_body(entry))
            if page and left < 0:
                done({"bridges": page, "next": _order(page[-1])}, None, now)
                return
            page.append(entry)
        done({"bridges": page, "next": None}, None, now)

    def end(self, args: dict[str, Any], done: Done, now: float) -> None:
        """Tell the worker that holds the bridge to end it.

        Raises:
            NotFound: no worker has it.
        """
        uid = str(args.get("uid"))
        for worker, entry in self._of(args):
            if entry["uid"] == uid and worker.path is not None:
                self._env.outbox.say(worker.path, event_frame("bridge.end", {"uid": uid}))
                done({}, None, now)
                return
        raise NotFound(f"bridge '{uid}' is not found: it has ended, or it is not a bridge of this job")

    def _of(self, args: dict[str, Any]) -> list[tuple[Worker, dict[str, Any]]]:
        connection, job = args.get("connection"), args.get("job")
        return [
            (worker, entry)
            for worker in self._workers
            for entry in worker.bridges
            if entry.get("connection") == connection and entry.get("job") == job
        ]


def _order(entry: dict[str, Any]) -> list[Any]:
    return [float(entry.get("since", 0)), str(entry["uid"])]
