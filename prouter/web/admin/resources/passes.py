"""Passes: URLs by which somebody who may use a job opens it in a browser."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import falcon

from prouter.access.gate import AccessGate
from prouter.access.roles import OPEN_ROUTER, Principal
from prouter.access.signing import Kind
from prouter.config import ConfigError
from prouter.config.router import RouterControl
from prouter.web.admin.requests.body import discard_body
from prouter.web.admin.requests.context import ApiRequest, principal_of, send_json
from prouter.web.admin.requests.job_urls import public_address
from prouter.web.proxy.addresses.forwarded import Public
from prouter.web.proxy.addresses.roots import ENTER, public_of, root_of
from prouter.web.proxy.entrance import holder_of, needs_own_origin, unusable
from prouter.web.router_client import RouterClient
from prouter.web.routes import JobRoute

__all__ = ["PassResource", "Passes"]

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
        root = root_of(public, route.connection, uid, self.domain)
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
