"""Events as clients see them: the broker's bodies with public names and times."""

from __future__ import annotations

from typing import Any

from prouter.jobs import INTERNAL_FIELDS, Reason, State, phase_of, rfc3339

__all__ = ["public_event"]

_TIMES = ("created_at", "started_at", "finished_at")


def public_event(body: dict[str, Any]) -> dict[str, Any]:
    """Return an event's data: ``id``, ``at``, ``connection``; then ``job`` (its info), or ``agent`` and ``change``."""
    event: dict[str, Any] = {"id": body["id"], "at": rfc3339(body["at"])}
    record = body.get("record")
    if record is None:
        event.update((key, value) for key, value in body.items() if key not in event)
        return event
    job = {key: value for key, value in record.items() if key not in INTERNAL_FIELDS}
    for name in _TIMES:
        if job.get(name) is not None:
            job[name] = rfc3339(job[name])
    connection = record["connection"]
    path = f"/jobs/{record.get('client') or connection}/{record['uid']}"
    event["connection"] = connection
    reason = Reason(record["reason"]) if record.get("reason") is not None else None
    queued, will_start = record.get("queue") is not None, record.get("will_start") is True
    phase = phase_of(State(record["state"]), reason, queued=queued, will_start=will_start)
    job["phase"] = phase.value if phase is not None else None
    event["job"] = {**job, "path": path, "base_url": f"{path}/http/" if record.get("endpoint") is not None else None}
    return event
