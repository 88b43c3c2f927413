"""Who sends a request: by an access token, as a trusted proxy's user, by a session, a pass or a share link.

Three kinds of credentials are *ambient*: a browser adds the session's cookie, a remembered Basic password and the
cookie of a login in front to requests of every page of an origin. Where jobs share the API's origin, which they do
below ``/jobs/C/J/http/``, a job's page is such a page. So ambient credentials of a browser count

- for the API only together with a proof, which only the router's own pages get (`proof_for`);
- for a job below that path only as a *pass*, a cookie that opens one job, which the router's own pages ask for.

Jobs with host names of their own have origins of their own, and programs that are no browsers run no foreign pages:
there ambient credentials count as they are, unless the browser says that another origin's page sends the request.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from prouter.access.cookies import PASS, SESSION, cookie_name, find
from prouter.access.gate import AccessGate
from prouter.access.roles import OPEN_ROUTER, Principal
from prouter.access.signing import Kind
from prouter.config.router import RouterControl
from prouter.errors import Forbidden
from prouter.web.proxy.addresses.cross_site import is_foreign
from prouter.web.proxy.addresses.forwarded import Forwarded, Public
from prouter.web.proxy.callers.proxy_users import ProxyUsers
from prouter.web.proxy.messages.heads import Header
from prouter.web.proxy.own_responses.pages import prefers_html

__all__ = ["PROOF", "Identity", "asks_for_a_page", "is_browser"]

PROOF = b"x-prouter-proof"
"""Field with the proof that a request comes from one of the router's own pages."""
_OF_BROWSERS = frozenset({b"accept-language", b"origin"})
"""Fields that browsers send by themselves, and other programs hardly ever."""
_PROOF_LIFETIME = 12 * 3600.0
"""Seconds for which a page may be left open."""


def is_browser(headers: list[Header]) -> bool:
    """Whether a browser sent a request, as far as it can be told.

    Browsers send ``Sec-Fetch-…`` to loopback and over TLS, which no page can prevent. Over plain http to other machines
    there is the name of the program, which pages can change in some browsers, and Accept-Language, which they cannot
    remove.
    """
    for name, value in headers:
        key = name.lower()
        if key.startswith(b"sec-fetch-") or key in _OF_BROWSERS or (key == b"user-agent" and b"Mozilla/" in value):
            return True
    return False


def asks_for_a_page(headers: list[Header]) -> bool:
    """Whether a browser opens a page in a window or tab of its own; a page's script cannot pretend that."""
    told = {name.lower(): value for name, value in headers if len(name) <= 14}
    mode = told.get(b"sec-fetch-mode")
    if mode is not None:
        return mode == b"navigate" and told.get(b"sec-fetch-dest") == b"document"
    return is_browser(headers) and prefers_html(told.get(b"accept", b""))


class Identity:
    """Finds out who sends a request.

    Args:
        gate: knows tokens, sessions and share links.
        control: the configuration.

    Attributes:
        own_names_only: whether no job's page shares the API's origin.
    """

    def __init__(self, gate: AccessGate, control: RouterControl) -> None:
        self.gate = gate
        self._users = ProxyUsers(control) if control.user_header is not None else None
        self.own_names_only = bool(control.job_domain) and control.job_domain_only
        self._sandboxed = control.sandbox_shares and not control.job_domain

    def find(
        self, forwarded: Forwarded, job: str | None, *, own_host: bool = False, key: bytes | None = None
    ) -> Principal | None:
        """Return who sends a request; None for somebody who has to show credentials, and has shown none that count.

        Sets ``forwarded.visitor`` to whom ambient credentials name, whether they count or not.

        Args:
            job: uid of the job whose HTTP is asked for; None for the API.
            own_host: whether the job is asked for under its own host name.
            key: the pass in the path of a sandboxed visitor, next to which nothing else counts; None elsewhere.
        """
        gate, head = self.gate, forwarded.head
        gate.refresh(time.monotonic())
        if not gate.required:
            return OPEN_ROUTER
        if key is not None:
            return self._sandboxed_visitor(str(job), key)
        found = gate.authenticate(head.headers)
        if found is not None and not found.ambient:
            return found
        found = found or self._user_of_proxy(forwarded) or self._signed_in(forwarded)
        forwarded.visitor = found
        if job is not None:
            admitted = self._admitted(forwarded, job, found, own_host=own_host)
            if admitted is not None and (own_host or admitted.via != "share"):
                return admitted
            if admitted is not None and self._sandboxed:
                if not is_browser(head.headers):
                    return admitted
                forwarded.visitor = found or admitted
        if found is None or own_host or not is_browser(head.headers):
            return found
        if job is not None:
            return None
        apart = self.own_names_only and not is_foreign(forwarded)
        return found if apart or self._is_proven(forwarded, found) else None

    def proof_for(self, visitor: Principal) -> str:
        """Return the proof for a page of the router's own that `visitor` gets.

        The caller has to make sure that no other page of the origin can read that page.
        """
        return self.gate.key.sign(Kind.PROOF, {"for": _subject(visitor)}, _PROOF_LIFETIME)

    def accepts_proof(self, visitor: Principal, proof: str) -> bool:
        """Whether this is a proof for `visitor`."""
        claims = self.gate.claims(Kind.PROOF, proof)
        return claims is not None and claims.get("for") == _subject(visitor)

    def sign_in_proof(self, address: str, visitor: Principal | None) -> str:
        """Return the proof for the form with which somebody signs in: no job's page may do that for its visitor.

        Args:
            address: of the client; without a session, a proof counts from there only.
            visitor: who is signed in already; None for nobody.
        """
        return self.gate.key.sign(Kind.PROOF, {"for": _signing_in(address, visitor)}, _PROOF_LIFETIME)

    def accepts_sign_in(self, proof: str, address: str, visitor: Principal | None) -> bool:
        """Whether this is a proof for that form."""
        claims = self.gate.claims(Kind.PROOF, proof)
        return claims is not None and claims.get("for") == _signing_in(address, visitor)

    def _is_proven(self, forwarded: Forwarded, visitor: Principal) -> bool:
        proofs = [value for name, value in forwarded.head.headers if len(name) == 15 and name.lower() == PROOF]
        return len(proofs) == 1 and self.accepts_proof(visitor, proofs[0].decode("latin-1"))

    def _user_of_proxy(self, forwarded: Forwarded) -> Principal | None:
        """Return whom a trusted proxy names; ``forwarded.refused`` says why that is nobody who may do anything."""
        if self._users is None or not forwarded.origin.trusted:
            return None
        try:
            return self._users.find(forwarded.head.headers)
        except Forbidden as error:
            forwarded.refused = error
            return None

    def _signed_in(self, forwarded: Forwarded) -> Principal | None:
        """Return who signed in at the dashboard.

        A page may have planted another cookie beside it. One that is no session counts for nothing. Of several
        sessions the one counts for which there is a proof, and without a proof none.
        """
        values = set(_cookies(forwarded, SESSION))
        found = [one for one in map(self.gate.session, values) if one is not None]
        if len(found) > 1:
            found = [one for one in found if self._is_proven(forwarded, one)]
        return found[0] if len(found) == 1 else None

    def _admitted(
        self, forwarded: Forwarded, job: str, visitor: Principal | None, *, own_host: bool
    ) -> Principal | None:
        """Return whom a pass lets in to this job, a visitor of a share link only if there is no better pass.

        Args:
            visitor: whom other credentials name.
        """
        guest: Principal | None = None
        for text in _cookies(forwarded, PASS, path=b"/" if own_host else b"/jobs"):
            claims = self.gate.claims(Kind.PASS, text)
            if claims is None or claims.get("job") != job:
                continue
            found = self._holder(claims, visitor)
            if found is not None and found.via != "share":
                return found
            guest = guest or found
        return guest

    def _sandboxed_visitor(self, job: str, key: bytes) -> Principal | None:
        """Return the visitor of a share link whose pass is in the path."""
        if not self._sandboxed:
            return None
        claims = self.gate.claims(Kind.PASS, key.decode("latin-1"))
        if claims is None or "share" not in claims or claims.get("job") != job:
            return None
        return self._holder(claims, None)

    def _holder(self, claims: dict[str, Any], visitor: Principal | None) -> Principal | None:
        """Return who holds a pass, if this one may still use it."""
        job = str(claims["job"])
        if "share" in claims:
            share = self.gate.share(str(claims["share"]))
            return share.principal if share is not None and share.job == job else None
        if "tid" in claims:
            found = self.gate.signed_in(str(claims["tid"]), str(claims.get("sid", "")))
        else:  # a proxy's user, whom the proxy has to name with every request
            named = visitor is not None and visitor.via == "proxy" and visitor.name == claims.get("sub")
            found = visitor if named else None
        return replace(found, job=job) if found is not None else None


def _subject(visitor: Principal) -> str:
    """What a proof says of its holder."""
    return visitor.session or f"{visitor.via}:{visitor.id}:{visitor.name}"


def _signing_in(address: str, visitor: Principal | None) -> str:
    """What the proof of the form to sign in says."""
    return f"sign-in {_subject(visitor) if visitor is not None else address}"


def _cookies(forwarded: Forwarded, base: bytes, *, path: bytes | None = None) -> list[str]:
    """Return the values of one of the router's cookies."""
    public: Public = forwarded.public
    secure = public.proto == b"https"
    where = (public.prefix or b"/") if path is None else path
    return find(forwarded.head.headers, cookie_name(base, secure=secure, path=where))
