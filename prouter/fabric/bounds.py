"""Largest sizes of everything that crosses the fabric, for those who encode and those who decode.

Whatever one end may encode, the other end accepts. A larger value is refused where it is made, and whatever asked for
it fails there. Sizes are bytes unless a name says otherwise.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "MAX_AGENT_REPLY",
    "MAX_CONTROL",
    "MAX_FRAMES",
    "MAX_JOB_EVENT",
    "MAX_MESSAGE",
    "MAX_NESTED",
    "MAX_PAGE",
    "MAX_PART",
    "MAX_PAYLOAD",
    "MAX_PLATFORM",
    "MAX_PROPERTIES",
    "MAX_ROUTERS",
    "PART_OVERHEAD",
    "nested",
]

MAX_PART = 16 * 1024 * 1024
"""One part of a ZeroMQ message."""
MAX_MESSAGE = 64 * 1024 * 1024
"""All parts of a ZeroMQ message, each with `PART_OVERHEAD`."""
PART_OVERHEAD = 64
"""What a part counts beside its own bytes: otherwise millions of empty parts would fit into a message."""
MAX_FRAMES = 32768
"""Frames in one message, a number."""
MAX_PAYLOAD = 8 * 1024 * 1024
"""Payload of one frame."""
MAX_CONTROL = 2 * 1024 * 1024
"""Payload of one call, reply or event: an HTTP request body of 1 MiB fits, with all defaults filled in."""
MAX_PAGE = 1024 * 1024
"""Entries of one response that lists something. A single entry that is larger is still listed."""
MAX_PROPERTIES = 48 * 1024
"""An agent's properties, as JSON. The agent's HELLO holds them, which may have 64 KiB, and so does each of its jobs."""
MAX_NESTED = 32
"""Levels of maps and lists in what an agent tells of itself: whoever gets it later can read and print it."""
MAX_ROUTERS = 32
"""Routers in an agent's event about its links, a number."""
MAX_PLATFORM = 8 * 1024
"""An agent's description of its machine, as JSON."""
MAX_AGENT_REPLY = 256 * 1024
"""Reply of an agent to the broker. A job record has up to 16 KiB, but agents of earlier versions did not shorten it."""
MAX_JOB_EVENT = 256 * 1024
"""Event of an agent about a single job."""


def nested(value: dict[str, Any]) -> int:
    """Return how many levels of maps and lists there are, `value` itself included; `MAX_NESTED` + 1 for any more."""
    levels = 0
    level: list[Any] = [value]
    while level and levels <= MAX_NESTED:
        levels += 1
        level = [
            part
            for whole in level
            for part in (whole.values() if isinstance(whole, dict) else whole)
            if isinstance(part, (dict, list))
        ]
    return levels
