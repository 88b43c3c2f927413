"""Signing in at the dashboard with an access token, and out again."""

from __future__ import annotations

import time

import falcon

from prouter.access.cookies import SESSION, cookie_name, set_cookie
from prouter.access.gate import LOOK_EVERY, AccessGate
from prouter.access.roles import OPEN_ROUTER, Principal
from prouter.access.session_ids import new_session_id
from prouter.access.signing import Kind
from prouter.access.tokens import Token
from prouter.config import ConfigError
from prouter.errors import Conflict, Overloaded, PRouterError, Unauthorized
from prouter.limits.requests import RequestLimits
from prouter.web.admin.pages.own_pages import (
    SIGN_IN_FAILED,
    OwnPages,
    client_address,
    from_browser,
    public_of,
    relative_target,
    visitor_of,
)
from prouter.web.admin.requests.body import discard_body, read_form
from prouter.web.admin.requests.context import ApiRequest
from prouter.web.proxy.addresses.forwarded import Public

__all__ = ["SignIn", "SignOut"]

_LIFETIME = 12 * 3600.0
"""Seconds for which a session lasts, unless its token expires before."""
_WRONG = "this access token does not count: it is mistyped, revoked or expired"
_STALE = "this form is too old, or was not loaded by a browser that went to the page itself: sign in on this page again"


class SignIn:
    """``/sign-in``

    Args:
        gate: knows tokens and signs sessions.
        pages: makes the form.
        limits: count failures; None for no limits.
    """

    def __init__(self, gate: AccessGate, pages: OwnPages, limits: RequestLimits | None) -> None:
        self._gate = gate
        self._pages = pages
        self._limits = limits

    def on_get(self, req: ApiRequest, resp: falcon.Response) -> None:
        """Send the form; whoever need not sign in goes on to ``next``."""
        target = relative_target(req.get_param("next"))
        visitor = visitor_of(req)
        if self._is_open(req) or (visitor is not None and visitor.via == "proxy"):
            _go_on(req, resp, target)
            return
        self._pages.sign_in(req, resp, target=target)

    on_head = on_get

    def on_post(self, req: ApiRequest, resp: falcon.Response) -> None:
        """Begin a session, and go to ``next``."""
        form = read_form(req)
        target = relative_target(form.get("next"))
        if self._is_open(req):
            _go_on(req, resp, target)
            return
        self._check_form(req, form.get("proof", ""))
        token = self._token(form.get("token", ""))
        if token is None:
            raise self._failure(req)
        visitor = visitor_of(req)
        if visitor is not None and visitor.session:
            end_session(self._gate, visitor.session)
        session = new_session_id(token)
        now = time.time()
        lifetime = _LIFETIME if token.expires is None else min(_LIFETIME, token.expires - now)
        text = self._gate.key.sign(Kind.SESSION, {"sid": session, "tid": token.id}, lifetime)
        resp.append_header("Set-Cookie", session_cookie(public_of(req), text, lifetime))
        req.env["prouter.principal"] = self._gate.signed_in(token.id, session)  # for the audit log
        _go_on(req, resp, target)

    def _is_open(self, req: ApiRequest) -> bool:
        return req.env.get("prouter.principal") is OPEN_ROUTER or not self._gate.required

    def _token(self, text: str) -> Token | None:
        holder = self._gate.token_holder(text.strip()) if text else None
        return self._gate.token(holder.id) if holder is not None else None

    def _failure(self, req: ApiRequest) -> PRouterError:
        """Count a wrong token; return the error, which asks for a pause if there were too many."""
        over = self._limits.sign_in_failed(client_address(req)) if self._limits is not None else None
        return over or Unauthorized(_WRONG, code=SIGN_IN_FAILED)

    def _check_form(self, req: ApiRequest, proof: str) -> None:
        """Refuse a form that a page of a job may have sent, to sign in its visitor as somebody else.

        Raises:
            Unauthorized: this may be such a form.
        """
        identity = self._pages.identity
        if identity.own_names_only or not from_browser(req):
            return
        if not identity.accepts_sign_in(proof, client_address(req), visitor_of(req)):
            raise Unauthorized(_STALE, code=SIGN_IN_FAILED)


class SignOut:
    """``/sign-out``"""

    def __init__(self, gate: AccessGate) -> None:
        self._gate = gate

    def on_post(self, req: ApiRequest, resp: falcon.Response) -> None:
        """End the session of this request; answered once no worker accepts it."""
        discard_body(req)
        principal: Principal | None = req.env.get("prouter.principal")
        if principal is None or not principal.session:
            raise Conflict("there is no session to end: these credentials are no session", code="no_session")
        end_session(self._gate, principal.session)
        time.sleep(LOOK_EVERY)  # the other workers go by what they saw for so long
        resp.append_header("Set-Cookie", session_cookie(public_of(req), "", None))
        resp.status = falcon.HTTP_204


def end_session(gate: AccessGate, session: str) -> None:
    """End a session in all workers, a moment later.

    Raises:
        Overloaded: it cannot be stored.
    """
    now = time.time()
    try:
        gate.ended.end(session, expires=now + _LIFETIME, now=now)
    except ConfigError as error:
        raise Overloaded(f"the session cannot be ended: {error}", code="sessions_unusable", retry_after=5) from error
    gate.look()


def session_cookie(public: Public, text: str, lifetime: float | None) -> str:
    """Return the value of Set-Cookie for a session; empty `text` removes it."""
    secure, path = public.proto == b"https", public.prefix or b"/"
    name = cookie_name(SESSION, secure=secure, path=path)
    return set_cookie(name, text, path=path, secure=secure, same_site="Strict", lifetime=lifetime)


def _go_on(req: ApiRequest, resp: falcon.Response, target: str) -> None:
    """Send the browser to a page of this router."""
    resp.status = falcon.HTTP_303
    resp.set_header("Location", public_of(req).prefix.decode("latin-1") + target)
    resp.set_header("Referrer-Policy", "no-referrer")
