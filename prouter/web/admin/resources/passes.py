"""Passes: URLs by which somebody who may use a job opens it in a browser, and the page that asks for one."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import falcon

from prouter.access.credentials import SIGN_IN
from prouter.access.gate import AccessGate
from prouter.access.roles import OPEN_ROUTER, Need, Principal, is_allowed, refusal
from prouter.access.signing import Kind
from prouter.config import ConfigError
from prouter.config.router import RouterControl
from prouter.errors import Unauthorized
from prouter.web.admin.pages.own_pages import OwnPages, visitor_of
from prouter.web.admin.requests.body import discard_body, read_form
from prouter.web.admin.requests.context import ApiRequest, principal_of, send_json
from prouter.web.admin.requests.job_urls import public_address
from prouter.web.admin.requests.query import text
from prouter.web.isolation import is_navigation, names_no_mode
from prouter.web.proxy.addresses.forwarded import Public
from prouter.web.proxy.addresses.roots import ENTER, public_of, root_of, safe_path
from prouter.web.proxy.entrance import holder_of, needs_own_origin, unusable
from prouter.web.router_client import RouterClient
from prouter.web.routes import JobRoute

__all__ = ["Enter", "PassResource", "Passes"]

_ENTRY_LIFETIME = 60.0
"""Seconds in which an entry has to be used."""


class Passes:
    """Gives entries to jobs.

    Args:
        gate: signs them.
        control: the configuration.
    """

    def __init__(self, gate: AccessGate, control: RouterControl) -> None:
        self._gate = gate
        self.domain = control.job_domain
        self._url = control.url

    def public(self, req: falcon.Request) -> Public:
        """Return the router's address for links."""
        return public_of(self._url) if self._url else public_address(req.env)

    def url(self, public: Public, route: JobRoute, principal: Principal, path: str = "/") -> str:
        """Return a URL that opens a job for `principal`, once followed within a minute.

        Args:
            path: where it leads, below the job's root.

        Raises:
            Forbidden: the job is somebody else's, and would share the origin of jobs of one's own.
        """
        uid = route.record.uid
        root = root_of(public, route.client, uid, self.domain)
        if principal is OPEN_ROUTER:
            return root + path
        if not self.domain and route.record.owner != principal.name:
            whose = f"belongs to '{route.record.owner}'" if route.record.owner is not None else "has no owner"
            raise needs_own_origin(
                f"job '{uid}' {whose} and cannot be opened in a browser beside jobs of your own",
                uid,
                code="needs_own_origin",
            )
        claims: dict[str, Any] = {"job": uid, **holder_of(self._gate, principal)}
        try:
            code = self._gate.key.sign(Kind.ENTRY, claims, _ENTRY_LIFETIME)
        except ConfigError as error:
            raise unusable(error) from error
        query = {"code": code, "next": path} if path != "/" else {"code": code}
        return f"{root}{ENTER.decode('ascii')}?{urlencode(query)}"

    def shared_url(self, public: Public, route: JobRoute, secret: str) -> str:
        """Return the URL of a share link."""
        root = root_of(public, route.client, route.record.uid, self.domain)
        return f"{root}{ENTER.decode('ascii')}?{urlencode({'code': secret})}"


class PassResource:
    """``JOB/pass``"""

    def __init__(self, router: RouterClient, passes: Passes) -> None:
        self._router = router
        self._passes = passes

    def on_post(self, req: ApiRequest, resp: falcon.Response, connection: str, job: str) -> None:
        """A URL at which a browser may open the job."""
        discard_body(req)
        route = self._router.route(connection, job)
        send_json(resp, {"url": self._passes.url(self._passes.public(req), route, principal_of(req))})


class Enter:
    """``/enter``: leads somebody who is signed in to a job.

    Where jobs have host names of their own, it leads on at once. Below /jobs/ it asks, because a job that is opened can
    be read by the pages of all other jobs that this browser has open.

    Args:
        router: knows jobs.
        passes: gives entries.
        pages: makes the page that asks.
    """

    def __init__(self, router: RouterClient, passes: Passes, pages: OwnPages) -> None:
        self._router = router
        self._passes = passes
        self._pages = pages

    def on_get(self, req: ApiRequest, resp: falcon.Response) -> None:
        """Lead to the job, or ask whether to open it."""
        visitor = _goer(req) or principal_or_none(req)
        if visitor is None:
            raise Unauthorized(SIGN_IN)
        path = safe_path(text(req, "next") or "/")
        route, url = self._url(req, visitor, text(req, "job") or "", path)
        if visitor is OPEN_ROUTER or self._passes.domain:
            _go(resp, url)
        else:
            self._pages.open_job(req, resp, visitor, name=route.record.name, job=route.record.uid, path=path)

    on_head = on_get

    def on_post(self, req: ApiRequest, resp: falcon.Response) -> None:
        """Lead to the job: the form of the page that asked."""
        form = read_form(req)
        visitor = principal_or_none(req)
        if visitor is None and (named := visitor_of(req)) is not None:
            visitor = named if self._pages.identity.accepts_proof(named, form.get("proof", "")) else None
        if visitor is None:
            raise Unauthorized(SIGN_IN)
        req.env["prouter.principal"] = visitor  # for the audit log
        _go(resp, self._url(req, visitor, form.get("job", ""), safe_path(form.get("next", "/")))[1])

    def _url(self, req: ApiRequest, visitor: Principal, job: str, path: str) -> tuple[JobRoute, str]:
        """Return a job and the URL that opens it.

        Raises:
            Forbidden: the visitor may not use the job, or not by path.
            NotFound: there is no such job.
        """
        route = self._router.checked_route("", job)
        owner = route.record.owner
        if not is_allowed(visitor, Need.OWNER, owner):
            raise refusal(visitor, Need.OWNER, owner, job=route.record.uid)
        # Below /jobs/ the browser stays at the address it uses: the policy of the page that asked allows no other one.
        public = self._passes.public(req) if self._passes.domain else public_address(req.env)
        return route, self._passes.url(public, route, visitor, path)


def principal_or_none(req: ApiRequest) -> Principal | None:
    """Return whom the credentials of a request let in; None if nobody."""
    found: Principal | None = req.env.get("prouter.principal")
    return found


def _goer(req: ApiRequest) -> Principal | None:
    """Return whom credentials name that a browser adds by itself, if it opens a page in a tab of its own."""
    return visitor_of(req) if is_navigation(req.get_header) or names_no_mode(req.get_header) else None


def _go(resp: falcon.Response, url: str) -> None:
    resp.status = falcon.HTTP_303
    resp.set_header("Location", url)
    resp.set_header("Referrer-Policy", "no-referrer")
