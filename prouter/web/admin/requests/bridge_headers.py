"""What a job is told in a bridge's handshake of the request that asked for the bridge: cookies, credentials and such.

The original passes these on, too: a job that lets in only who has its token or cookie can be bridged by who has it.
"""

from __future__ import annotations

from collections.abc import Mapping

from prouter.web.proxy.fields import REQUEST_FIELDS, RequestField

__all__ = ["handshake_headers"]

_OF_THE_REQUEST = frozenset({"accept", "accept-encoding", "date", "idempotency-key", "user-agent"})
"""Fields that are about the request for the bridge, or its answer."""
_PREFIXES_OF_THE_REQUEST = ("content-", "if-", "sec-")
"""Fields about its body, of conditions, and of how a browser came to send it or what WebSocket it speaks."""


def handshake_headers(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Those of a request's `headers` that go into the handshake with the job.

    What would not pass the proxy does not pass here: fields of one hop, and what claims to be a proxy's word. Host and
    Origin stay out as well, since it is the router that speaks to the job.

    Args:
        headers: as WSGI has them: one value per name, joined by commas if there were several.
    """
    dropped = {name.strip().lower() for name in headers.get("CONNECTION", "").split(",")}
    return [
        (name.title(), value)
        for name, value in headers.items()
        if (key := name.lower()) not in dropped
        and key not in _OF_THE_REQUEST
        and not key.startswith(_PREFIXES_OF_THE_REQUEST)
        and REQUEST_FIELDS[key.encode("latin-1")] == RequestField.PASS
    ]
