"""The way in to a job for browsers: a code is exchanged for a pass, the cookie that opens this job and nothing else.

A code is the secret of a share link, or an entry: a text that the router signs for somebody who may use the job, and
that is valid for a minute. ``GET <job root>/.prouter/enter?code=CODE&next=PATH`` is the same for both. The router
answers it itself, so that no job sees a code. It may be repeated (previews of links, prefetching, HEAD), and changes
nothing but the visitor's cookie.

Visitors of a share link below the job's path get the pass in the path instead, because their pages have an opaque
origin, whose requests carry no cookies: docs/decisions/sharing.md.
"""

from __future__ import annotations

import time
from typing import Any, Protocol
from urllib.parse import parse_qs, quote, urlencode

from prouter.access.cookies import PASS, cookie_name, set_cookie
from prouter.access.gate import AccessGate
from prouter.access.roles import Principal
from prouter.access.session_ids import new_session_id
from prouter.access.share_file import SECRET_PREFIX
from prouter.access.signing import Kind
from prouter.config import ConfigError
from prouter.config.router import RouterControl
from prouter.errors import Forbidden, InvalidRequest, Overloaded, PRouterError, Unauthorized
from prouter.web.metrics import counters
from prouter.web.proxy.addresses.forwarded import Forwarded
from prouter.web.proxy.addresses.placing import own_origin
from prouter.web.proxy.addresses.roots import ENTER, Asked, public_of, safe_path, usable
from prouter.web.proxy.callers.identity import asks_for_a_page, is_browser
from prouter.web.proxy.interfaces import Client
from prouter.web.proxy.messages.heads import RequestHead
from prouter.web.proxy.own_responses.pages import request_id, see_other
from prouter.web.proxy.own_responses.refusals import MethodRefused
from prouter.web.router_client import RouterClient

__all__ = ["PASS_LIFETIME", "Entrance", "explained", "holder_of", "needs_own_origin", "unusable"]

PASS_LIFETIME = 12 * 3600.0
"""Seconds for which a pass opens a job, at most."""
_SEE_OTHER = 303
_FIELDS = 10
_CLOSED = "this job is open to who has a pass: open it from the dashboard, or by a link that somebody shared with you"
_STALE = "this address is too old, or its link has ended: open the link again, or ask for a new one"
_HOW = "open the job from the dashboard, or ask for a new link"


def needs_own_origin(what: str, job: str, *, code: str) -> Forbidden:
    """Return the error for what would need a job with an origin of its own.

    Args:
        what: what cannot be done.
    """
    return Forbidden(
        f"{what}: below /jobs/ the pages of all jobs have one origin and can read each other. Give jobs host names of "
        "their own with control.job_domain in the router's configuration (jobs.localhost for browsers on the router's "
        "machine)"
        + (", or set control.sandbox_shares for pages that only read" if code == "share_needs_own_origin" else ""),
        job=job,
        code=code,
    )


class EntranceContext(Protocol):
    """What the entrance uses of the worker's proxy."""

    client: RouterClient

    def client_key(self, forwarded: Forwarded) -> str:
        """Return the key of a client's budgets."""


class Entrance:
    """Lets visitors in to jobs.

    Args:
        gate: knows share links, and signs passes.
        control: the configuration.
        server: the worker's proxy.
    """

    def __init__(self, gate: AccessGate, control: RouterControl, server: EntranceContext) -> None:
        self._gate = gate
        self._client_key = server.client_key
        self._audit, self._limits = server.client.audit, server.client.limits
        self._domain = control.job_domain
        self._sandboxed = control.sandbox_shares
        self._url = control.url

    def is_asked(self, asked: Asked) -> bool:
        """Whether a request is for the entrance, not for the job."""
        target = asked.target
        return target.startswith(ENTER) and asked.key is None and target.partition(b"?")[0] == ENTER

    def enter(self, client: Client, forwarded: Forwarded, asked: Asked) -> None:
        """Respond to a request for the entrance."""
        head = forwarded.head
        status = _SEE_OTHER
        try:
            response = self._response(forwarded, asked)
        except PRouterError as error:
            told = self._slowed(forwarded, error)
            status = told.status
            client.fail(told, head)
        else:
            _lead(client, head, response)
        if self._audit is not None:
            self._audit.write(
                "enter",
                principal=forwarded.principal,
                address=client.origin.address,
                forwarded_for=forwarded.clients,
                method=head.method.decode("ascii"),
                path=asked.shown,
                job=asked.job,
                status=status,
                request=request_id(head.headers),
            )

    def leads_on(self, client: Client, forwarded: Forwarded, asked: Asked) -> bool:
        """Lead a visitor without a pass to where there is one; return whether there is such a way."""
        try:
            response = self._elsewhere(forwarded, asked)
        except PRouterError as error:
            client.fail(error, forwarded.head)
            return True
        if response is not None:
            _lead(client, forwarded.head, response)
        return response is not None

    def _slowed(self, forwarded: Forwarded, error: PRouterError) -> PRouterError:
        """Count a wrong code as a failed sign-in; return the error, another one if the client has sent too many."""
        if self._limits is None or error.code != "link_refused":
            return error
        return self._limits.unauthenticated(self._client_key(forwarded), failed=True) or error

    def _response(self, forwarded: Forwarded, asked: Asked) -> bytes:
        """Return the whole response to a request for the entrance.

        Raises:
            Forbidden: the code is wrong or too old.
            InvalidRequest: the query cannot be read.
            MethodRefused: the method is neither GET nor HEAD.
        """
        head = forwarded.head
        if head.method not in (b"GET", b"HEAD"):
            raise MethodRefused(f"{ENTER.decode()} takes GET and HEAD only")
        try:
            query = parse_qs(asked.target.partition(b"?")[2].decode("latin-1"), max_num_fields=_FIELDS)
        except ValueError:
            raise InvalidRequest("Invalid request: the query has too many fields") from None
        code, path = query.get("code", [""])[-1], safe_path(query.get("next", ["/"])[-1])
        public = forwarded.public
        below = public.prefix + asked.prefix
        if not (usable(asked.job) and (asked.own_host or usable(asked.connection))) or b";" in below:
            raise InvalidRequest("Invalid request: the path names no job")
        if not self._gate.required:
            return see_other(below + path.encode("ascii"))
        if self._domain and not asked.own_host:
            elsewhere = own_origin(public_of(self._url) if self._url else public, asked.job, self._domain)
            return see_other(f"{elsewhere}{ENTER.decode()}?{urlencode({'code': code, 'next': path})}".encode("ascii"))
        claims, lifetime = self._claims(code, asked)
        holder = forwarded.principal
        if "share" in claims and holder is not None and holder.job == asked.job and holder.via != "share":
            return see_other(below + path.encode("ascii"))  # who may do more already keeps that
        text = self._sign(claims, lifetime)
        secure = public.proto == b"https"
        where = b"/" if asked.own_host else below
        cookie = set_cookie(
            cookie_name(PASS, secure=secure, path=where),
            text,
            path=where,
            secure=secure,
            same_site="Lax",
            lifetime=lifetime,
        )
        if "share" in claims and not asked.own_host and is_browser(head.headers):
            below = public.prefix + asked._replace(key=text.encode("ascii")).prefix
        return see_other(below + path.encode("ascii"), cookie)

    def _elsewhere(self, forwarded: Forwarded, asked: Asked) -> bytes | None:
        """Return the response that leads a visitor without a pass to where there is one; None if there is no such way.

        Only for a page that a person opens: whatever a page requests in the background gets 401.
        """
        head = forwarded.head
        if head.method not in (b"GET", b"HEAD") or head.upgrade or asked.key is not None:
            return None
        if forwarded.refused is not None:
            return None
        if not usable(asked.job) or not asks_for_a_page(head.headers):
            return None
        visitor, prefix = forwarded.visitor, forwarded.public.prefix
        target = asked.target or b"/"
        if visitor is not None and visitor.via == "share":
            if asked.own_host:
                return None
            claims, lifetime = {"job": asked.job, "share": visitor.id}, PASS_LIFETIME
            text = self._sign(claims, lifetime)
            return see_other(prefix + asked._replace(key=text.encode("ascii")).prefix + target)
        query = f"/enter?job={asked.job}&next={quote(target, safe='/')}".encode("ascii")
        if asked.own_host:
            return see_other(self._url.encode("ascii") + query) if self._url else None
        return see_other(prefix + query)

    def _claims(self, code: str, asked: Asked) -> tuple[dict[str, Any], float]:
        """Return what a pass for this code says, and for how many seconds.

        Raises:
            Forbidden: the code does not count for this job.
        """
        if code.startswith(SECRET_PREFIX):
            share = self._gate.share_by_secret(code)
            if share is None or share.job != asked.job:
                raise Forbidden(
                    f"this link does not open this job, or no longer: {_HOW}", job=asked.job, code="link_refused"
                )
            if not asked.own_host and not self._sandboxed:
                raise needs_own_origin("this link cannot be used", asked.job, code="share_needs_own_origin")
            left = PASS_LIFETIME if share.expires is None else share.expires - time.time()
            return {"job": share.job, "share": share.id}, min(left, PASS_LIFETIME)
        claims = self._gate.claims(Kind.ENTRY, code)
        if claims is None or claims.get("job") != asked.job:
            raise Forbidden(
                f"this link is more than a minute old, or for another job: {_HOW}", job=asked.job, code="link_refused"
            )
        return {name: claims[name] for name in ("job", "tid", "sid", "sub") if name in claims}, PASS_LIFETIME

    def _sign(self, claims: dict[str, Any], lifetime: float) -> str:
        try:
            return self._gate.key.sign(Kind.PASS, claims, lifetime)
        except ConfigError as error:
            raise unusable(error) from error


def _lead(client: Client, head: RequestHead, response: bytes) -> None:
    """Send a redirect of the router's own."""
    counters.current().count_response(counters.API, head.method, _SEE_OTHER, time.monotonic() - client.began)
    client.write(response)
    client.exchange_done(False)


def explained(error: PRouterError, forwarded: Forwarded, asked: Asked) -> PRouterError:
    """Return the error for somebody whom nothing lets in to a job; with a browser, it says how to get in."""
    if error.status == Unauthorized.status and asks_for_a_page(forwarded.head.headers):
        error.detail = _STALE if asked.key is not None else _CLOSED
    return error


def unusable(error: ConfigError) -> PRouterError:
    """Return the error for a signing key or a file of share links that cannot be used."""
    return Overloaded(f"the router cannot give passes: {error}", code="passes_unusable", retry_after=5)


def holder_of(gate: AccessGate, principal: Principal) -> dict[str, str]:
    """Return the claims by which a pass recognises its holder."""
    if principal.via == "proxy":
        return {"sub": principal.name}
    token = gate.token(principal.id)
    session = principal.session or (new_session_id(token) if token is not None else "")
    return {"tid": principal.id, "sid": session}
