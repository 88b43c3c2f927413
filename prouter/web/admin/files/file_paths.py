"""File paths in request targets, taken from the raw target, so that every name a file system can hold works."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from prouter.errors import InvalidRequest

__all__ = ["path_below"]

_HEX = frozenset("0123456789abcdefABCDEF")


def path_below(raw_path: str) -> bytes:
    """Return the path after ``/jobs/C/J/<noun>/`` of a request target, percent-decoded once; ``+`` stays ``+``.

    The agent decides whether the path stays inside the sandbox: only the agent sees the sandbox's links.

    Args:
        raw_path: path of the request target as sent, each character one byte (latin-1).

    Raises:
        InvalidRequest: a ``%`` that starts no escape.
    """
    segments = raw_path.split("/", 5)
    encoded = segments[5] if len(segments) == 6 else ""
    for piece in encoded.split("%")[1:]:
        if len(piece) < 2 or not _HEX.issuperset(piece[:2]):
            raise InvalidRequest("Invalid request: a '%' in the path must start an escape like %25")
    return unquote_to_bytes(encoded.encode("latin-1")).rstrip(b"/")
