"""Largest sizes of everything that crosses the fabric: the one place that both encoding and decoding look at.

Whatever one end may encode, the other accepts; what is larger is refused where it is made, and fails what asked for it.
Sizes are bytes unless something else is said.
"""

from __future__ import annotations

__all__ = [
    "MAX_AGENT_REPLY",
    "MAX_CONTROL",
    "MAX_FRAMES",
    "MAX_JOB_EVENT",
    "MAX_MESSAGE",
    "MAX_PAGE",
    "MAX_PART",
    "MAX_PAYLOAD",
    "MAX_PLATFORM",
    "MAX_PROPERTIES",
    "PART_OVERHEAD",
]

MAX_PART = 16 * 1024 * 1024
"""One part of a ZeroMQ message."""
MAX_MESSAGE = 64 * 1024 * 1024
"""All parts of a ZeroMQ message, each with `PART_OVERHEAD`."""
PART_OVERHEAD = 64
"""What keeping a part costs beside its own bytes."""
MAX_FRAMES = 32768
"""Frames in one message."""
MAX_PAYLOAD = 8 * 1024 * 1024
"""Payload of one frame."""
MAX_CONTROL = 2 * 1024 * 1024
"""Payload of one call, reply or event. A request body of 1 MiB fits with all defaults filled in."""
MAX_PAGE = 1024 * 1024
"""Entries of one answer that lists something; a single entry always is in it."""
MAX_PROPERTIES = 48 * 1024
"""An agent's properties, as JSON. They are in its introduction, which may have 64 KiB, and beside each of its jobs."""
MAX_PLATFORM = 8 * 1024
"""What an agent says of its machine, as JSON."""
MAX_AGENT_REPLY = 256 * 1024
"""Reply of an agent to the broker. A record has at most 16 KiB; agents of earlier versions did not shorten them."""
MAX_JOB_EVENT = 256 * 1024
"""Event of an agent about a single job."""
