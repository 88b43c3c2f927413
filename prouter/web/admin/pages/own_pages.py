"""The router's own pages for people: signing in, and what is shown to somebody whose request needs it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from string import Template

import falcon

from prouter.access.roles import Principal
from prouter.web.admin.requests.context import ApiRequest
from prouter.web.isolation import is_navigation, isolation_fields, names_no_mode
from prouter.web.proxy.addresses.forwarded import Public
from prouter.web.proxy.callers.identity import Identity, is_browser

__all__ = [
    "SIGN_IN_FAILED",
    "OwnPages",
    "client_address",
    "from_browser",
    "isolated",
    "public_of",
    "relative_target",
    "visitor_of",
]

SIGN_IN_FAILED = "sign_in_failed"
"""Code of the error for whoever signs in with a wrong token."""
_TARGET = re.compile(r"/(?!/)[!-\[\]-~]*")
"""A path with a query on this host: visible ASCII without a backslash, which browsers take for a slash."""
_LONGEST_TARGET = 4096
_RETURNS = re.compile(r"/enter(?:\?|\Z)")
"""Targets that are asked for again after signing in; others would answer in JSON, and from the dashboard only."""
_FORM = """
<p>$message</p>
<form method="post" action="$action">
<label for="token">Access token</label>
<input id="token" name="token" type="password" autocomplete="$remembered" required autofocus>
<input type="hidden" name="proof" value="$proof"><input type="hidden" name="next" value="$next">
<button>Sign in</button>
</form>
"""
_OPEN = Template("""
<p>“$name”. Pages of your own jobs can read each other: go on if you meant to open it.</p>
<form method="post" action="$action">
<input type="hidden" name="proof" value="$proof"><input type="hidden" name="job" value="$job">
<input type="hidden" name="next" value="$next"><button autofocus>Open the job</button>
</form>
""")
_NO_PROOF = (
    "This browser connects over plain http, where no page of this router could be kept apart from jobs' pages. "
    "Ask your administrator for TLS, or for control.job_domain_only."
)
_NOT_HERE = (
    "You are signed in as '{name}'. A browser gets this address from the dashboard only, so that no page of a job "
    "can ask for it in your name."
)


def isolated(resp: falcon.Response, page: bytes, *, forms: Sequence[str] = ()) -> None:
    """Respond with a page that no other page can read (`prouter.web.isolation`).

    Args:
        page: HTML.
        forms: sources (CSP) to which its forms may lead.
    """
    resp.data = page
    for name, value in isolation_fields(page, forms=forms):
        resp.set_header(name, value)


def relative_target(text: str | None) -> str:
    """Return where to go after signing in: a path on this host; the dashboard if `text` is none."""
    if text is None or len(text) > _LONGEST_TARGET or _TARGET.fullmatch(text) is None:
        return "/"
    return text


def client_address(req: falcon.Request) -> str:
    """Return where a request comes from, as far as it can be told (`prouter.limits.clients`)."""
    key: Callable[[], str] | None = req.env.get("prouter.client_key")
    return key() if key is not None else req.env.get("REMOTE_ADDR") or "unix"


class OwnPages:
    """Makes these pages.

    Args:
        identity: makes proofs.
        job_domain: domain of the jobs' own host names, to which a form may lead in the end; None without.
    """

    def __init__(self, identity: Identity, job_domain: str | None) -> None:
        self.identity = identity
        self._template = Template((files("prouter.web.admin") / "static" / "sign_in.html").read_text())
        self._form = Template(_FORM)
        domain = job_domain.strip(".") if job_domain else ""
        self.forms = ["'self'", *([f"http://*.{domain}:*", f"https://*.{domain}:*"] if domain else [])]

    def proof_for(self, req: ApiRequest, visitor: Principal) -> str:
        """Return the proof for a page that answers `req`; empty if other pages might read the response."""
        return self.identity.proof_for(visitor) if is_navigation(req.get_header) else ""

    def sign_in(self, req: ApiRequest, resp: falcon.Response, *, message: str = "", target: str = "/") -> None:
        """Respond with the form to sign in; the caller sets the status.

        Args:
            message: what went wrong before; empty for nothing.
            target: where to go then, see `relative_target`.
        """
        if req.method == "GET" and req.get_header("Sec-Fetch-Site") == "cross-site" and is_navigation(req.get_header):
            # The session's cookie is SameSite=Strict: links on other sites lead here without it, this page on with it.
            self._show(req, resp, "One moment", '<meta http-equiv="refresh" content="0"><p>Loading …</p>')
            return
        told = f'<span class="bad">{escape(message)}</span>' if message else "This router asks for an access token."
        proof = (
            self.identity.sign_in_proof(client_address(req), visitor_of(req)) if is_navigation(req.get_header) else ""
        )
        if not proof and not self.identity.own_names_only and names_no_mode(req.get_header) and from_browser(req):
            self._show(req, resp, "Please sign in", f'<p class="bad">{escape(_NO_PROOF)}</p>')
            return
        # What a browser remembers for this origin it would offer to a form of any page below /jobs/, too.
        remembered = "current-password" if self.identity.own_names_only else "one-time-code"
        form = self._form.substitute(
            remembered=remembered,
            message=told,
            action=escape(_prefix(req) + "/sign-in"),
            proof=escape(proof),
            next=escape(target),
        )
        self._show(req, resp, "Please sign in", form)

    def open_job(
        self, req: ApiRequest, resp: falcon.Response, visitor: Principal, *, name: str, job: str, path: str
    ) -> None:
        """Respond with the question whether to open a job.

        Args:
            name: of the job.
            job: its uid.
            path: where in the job to begin.
        """
        proof = self.proof_for(req, visitor)
        if not proof:
            self._show(req, resp, "Open this job?", f'<p class="bad">{escape(_NO_PROOF)}</p>')
            return
        form = _OPEN.substitute(
            name=escape(name),
            action=escape(_prefix(req) + "/enter"),
            proof=escape(proof),
            job=escape(job),
            next=escape(path),
        )
        self._show(req, resp, "Open this job?", form)

    def refuse(self, req: ApiRequest, resp: falcon.Response, message: str = "") -> None:
        """Respond to a request of a person that has no credentials that count; the caller sets the status."""
        visitor = visitor_of(req)
        if visitor is not None and not message:
            text = escape(_NOT_HERE.format(name=visitor.name))
            link = f'<p><a href="{escape(_prefix(req))}/">Open the dashboard</a></p>'
            self._show(req, resp, "Open this from the dashboard", f"<p>{text}</p>{link}")
            return
        target = str(req.env.get("RAW_URI") or "/") if req.method == "GET" else "/"
        self.sign_in(req, resp, message=message, target=relative_target(target if _RETURNS.match(target) else "/"))

    def _show(self, req: ApiRequest, resp: falcon.Response, title: str, content: str) -> None:
        page = self._template.substitute(title=escape(title), content=content, request=escape(req.id))
        isolated(resp, page.encode(), forms=self.forms)


def visitor_of(req: falcon.Request) -> Principal | None:
    """Return whom credentials name that browsers add by themselves, whether they count for this request or not."""
    found: Principal | None = req.env.get("prouter.visitor")
    return found


def public_of(req: falcon.Request) -> Public:
    """Return the router's address as the client sees it."""
    found: Public = req.env.get("prouter.public") or Public(b"http", req.host.encode("latin-1"))
    return found


def from_browser(req: falcon.Request) -> bool:
    """Whether a browser sends a request, as far as it can be told."""
    return is_browser([(name.encode("latin-1"), value.encode("latin-1")) for name, value in req.headers.items()])


def _prefix(req: falcon.Request) -> str:
    """Path under which a proxy serves the router."""
    return public_of(req).prefix.decode("latin-1")
