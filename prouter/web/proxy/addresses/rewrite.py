"""Heads as the other side gets them: forwarded fields, addresses and framing change, everything else passes as it is.

fields.py decides which fields pass, mapping.py how addresses in them change.
"""

from __future__ import annotations

from collections.abc import Callable

from prouter.access.cookies import is_own
from prouter.access.roles import OPEN_ROUTER
from prouter.web.proxy.addresses.fields import (
    REQUEST_FIELDS,
    RESPONSE_FIELDS,
    RequestField,
    RequestFields,
    ResponseField,
)
from prouter.web.proxy.addresses.forwarded import Forwarded
from prouter.web.proxy.addresses.mapping import Site
from prouter.web.proxy.addresses.sandbox import REPLACED
from prouter.web.proxy.messages.heads import BodyKind, ResponseHead

__all__ = ["request_to_job", "response_to_client"]

_CLEARED = (b'"cache"', b'"storage"', b'"executionContexts"', b'"clientHints"', b'"prefetchCache"', b'"prerenderCache"')
"""What Clear-Site-Data clears for one origin alone."""
_OF_THE_HOP = frozenset({b"close", b"keep-alive", b"upgrade"})
"""Common options of Connection that name no field which would pass otherwise."""


def _first(headers: list[tuple[bytes, bytes]], wanted: bytes) -> bytes:
    for name, value in headers:
        if name.lower() == wanted:
            return value
    return b""


def request_to_job(
    forwarded: Forwarded,
    target: bytes,
    prefix: bytes,
    *,
    site: Callable[[], Site],
    local: bool = False,
    mark: bytes = b"",
    fields: RequestFields = REQUEST_FIELDS,
) -> bytes:
    """Return the head to send to the job.

    Args:
        forwarded: the client's request.
        target: the raw request target for the job.
        prefix: the job's public prefix, empty when the job has a host name of its own.
        site: returns the job's addresses; called only if a field of the request may hold one of them.
        local: whether Host names the job's local address.
        mark: this router's pseudonym among the hops.
        fields: which fields the job gets.
    """
    head = forwarded.head
    lines = [b"%s %s HTTP/1.1\r\n" % (head.method, target)]
    named = head.connection - _OF_THE_HOP
    for name, value in head.headers:
        action = fields[name]
        if named and name.lower() in named:
            continue
        if action == RequestField.HOPS:
            mark = value + b", " + mark if mark else value
            continue
        if action:
            if action == RequestField.COOKIES:
                kept = fields.cookies(value)
            else:
                kept = _request_value(action, name, value, forwarded, site, local=local)
            if kept is None:
                continue
            value = kept
        lines.append(b"%s: %s\r\n" % (name, value))
    if head.body == BodyKind.CHUNKED:
        lines.append(b"Transfer-Encoding: chunked\r\n")
    if head.upgrade:
        lines.append(b"Connection: Upgrade\r\nUpgrade: %s\r\n" % head.upgrade)
    lines.append(forwarded.lines(prefix) + forwarded.identity)
    lines.append(b"X-PRouter-Via: %s\r\n\r\n" % mark if mark else b"\r\n")
    return b"".join(lines)


def _request_value(
    action: int, name: bytes, value: bytes, forwarded: Forwarded, site: Callable[[], Site], *, local: bool
) -> bytes | None:
    """Return the value that a field with an `action` has for the job, None if the job does not get the field."""
    head = forwarded.head
    if action >= RequestField.MAP:
        return site().to_job(name, value) if local or action == RequestField.MAP else value
    if action == RequestField.CLAIM:
        return value if forwarded.origin.trusted else None
    if action == RequestField.CREDENTIALS:
        return value if forwarded.principal is OPEN_ROUTER else None
    if action == RequestField.LENGTH:
        return value if head.body == BodyKind.LENGTH else None
    if action == RequestField.EXPECT and (head.expect or value.lower() != b"100-continue"):
        return value
    return None  # RequestField.DROP, or 100-continue from HTTP/1.0, where it is ignored (RFC 9110 section 10.1.1)


def response_to_client(
    head: ResponseHead,
    site: Callable[[], Site],
    *,
    chunked: bool,
    keep_alive: bool,
    client_version: str,
    own_host: bool = False,
    opener: bool = True,
    sandbox: bytes = b"",
) -> bytes:
    """Return the head to send to the client.

    Args:
        head: the job's response head.
        site: returns the job's addresses; called only if the response holds some.
        chunked: whether the router frames the body in chunks.
        keep_alive: whether the client's connection persists.
        client_version: ``1.1`` or ``1.0``.
        own_host: whether the client used the job's own host name, so that the job has an origin of its own.
        opener: whether the job may set Cross-Origin-Opener-Policy.
        sandbox: lines that put the response into a sandbox; empty for none.
    """
    lines = [b"HTTP/1.1 %d %s\r\n" % (head.status, head.reason)]
    named = head.connection - _OF_THE_HOP
    upgrade = b""
    framed_elsewhere = chunked or head.body == BodyKind.CHUNKED or head.status < 200 or head.status == 204
    for name, value in head.headers:
        action = RESPONSE_FIELDS[name]
        if named and name.lower() in named:
            continue
        if sandbox and name.lower() in REPLACED:
            continue
        if action:
            if action == ResponseField.MAP:
                value = site().to_client(name, value)
            elif action == ResponseField.COOKIE:
                if is_own(value):
                    continue
                value = site().to_client(name, value)
            elif action == ResponseField.LENGTH:
                if framed_elsewhere:
                    continue
            elif action == ResponseField.UPGRADE and head.status == 426:
                upgrade = b"Upgrade, "  # RFC 9110 section 15.5.22: Upgrade says to what
            elif action == ResponseField.SHARED and own_host:
                value = _cleared(value) if name.lower() == b"clear-site-data" else value
                if not value:
                    continue
            elif not (opener and action == ResponseField.OPENER):
                continue
        lines.append(b"%s: %s\r\n" % (name, value))
    if chunked:
        lines.append(b"Transfer-Encoding: chunked\r\n")
    if sandbox:
        lines.append(sandbox)
    lines.append(_connection(head, upgrade, keep_alive=keep_alive, client_version=client_version))
    lines.append(b"\r\n")
    return b"".join(lines)


def _cleared(value: bytes) -> bytes:
    """Return what a job with an origin of its own may have a browser clear (Clear-Site-Data).

    Cookies are cleared for the whole domain, other jobs and the dashboard among it, so they are not: ``"*"`` stands for
    the rest.
    """
    kinds = {kind.strip() for kind in value.split(b",")}
    return b", ".join(kind for kind in _CLEARED if kind in kinds or b'"*"' in kinds)


def _connection(head: ResponseHead, upgrade: bytes, *, keep_alive: bool, client_version: str) -> bytes:
    """Return the lines about the client's connection (RFC 9112 section 9.3).

    Args:
        upgrade: option of Connection for a 426, else empty.
    """
    if head.status == 101:
        return b"Connection: Upgrade\r\nUpgrade: %s\r\n" % _first(head.headers, b"upgrade")
    if head.status < 200:
        return b""
    persistence = b"close" if not keep_alive else b"keep-alive" if client_version == "1.0" else b""
    if not upgrade and not persistence:
        return b""
    return b"Connection: %s\r\n" % (upgrade + persistence).removesuffix(b", ")
