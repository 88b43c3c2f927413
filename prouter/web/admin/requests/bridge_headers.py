"""Fields of a request for a bridge that go into the bridge's handshake with the job: cookies, credentials and others.

The original passes them on, too: a client with the job's token or cookie can bridge a job that requires one.
"""

from __future__ import annotations

from collections.abc import Mapping

from prouter.web.proxy.addresses.fields import REQUEST_FIELDS, RequestField, RequestFields

__all__ = ["handshake_headers"]

_OF_THE_REQUEST = frozenset({"accept", "accept-encoding", "date", "idempotency-key", "user-agent"})
"""Fields about the request for the bridge, or about its response."""
_PREFIXES_OF_THE_REQUEST = ("content-", "if-", "sec-")
"""Prefixes of fields about the body, conditions, the browser's context, or another WebSocket handshake."""


def handshake_headers(
    headers: Mapping[str, str], *, credentials: bool = True, fields: RequestFields = REQUEST_FIELDS
) -> list[tuple[str, str]]:
    """Return the fields of a request that go into the handshake with the job.

    Fields that do not pass the proxy do not pass here: those for one hop, and those of untrusted proxies. Host and
    Origin stay out, too, because the router is the client of the job.

    Args:
        headers: one value per name, joined by commas, as in WSGI.
        credentials: whether Authorization is for the job; otherwise it let the client in, and stays out.
        fields: which fields jobs get.
    """
    passing = {RequestField.PASS, RequestField.COOKIES}
    if credentials:
        passing.add(RequestField.CREDENTIALS)
    dropped = {name.strip().lower() for name in headers.get("CONNECTION", "").split(",")}
    passed = [
        (name.title(), value)
        for name, value in headers.items()
        if (key := name.lower()) not in dropped
        and key not in _OF_THE_REQUEST
        and not key.startswith(_PREFIXES_OF_THE_REQUEST)
        and fields[key.encode("latin-1")] in passing
    ]
    return [(name, kept) for name, value in passed if (kept := _for_job(name, value, fields)) is not None]


def _for_job(name: str, value: str, fields: RequestFields) -> str | None:
    """Return the value for the job: of Cookie without what no job gets; None if nothing is left."""
    if name != "Cookie":
        return value
    kept = fields.cookies(value.encode("latin-1"))
    return None if kept is None else kept.decode("latin-1")
