"""Access control of the API: Falcon middleware that asks each request for what its route needs.

The worker has looked at the credentials already (`prouter.web.proxy.server`), because requests to jobs need that, too.
"""

from __future__ import annotations

from typing import Any

import falcon

from prouter.access.credentials import SIGN_IN
from prouter.access.gate import AccessGate
from prouter.access.roles import OPEN_ROUTER, Need, Principal, Role, is_allowed, refusal
from prouter.errors import PRouterError, Unauthorized
from prouter.web.admin.operations import OPERATIONS
from prouter.web.admin.requests.context import ApiRequest
from prouter.web.isolation import is_navigation, names_no_mode
from prouter.web.route_roles import NEEDS, PAGES
from prouter.web.router_client import RouterClient

__all__ = ["OPEN_PATHS", "AccessControl", "need_of"]

_REST = "/{rest}"
_NEEDS = {(operation.method.upper(), operation.path): NEEDS[operation.name] for operation in OPERATIONS}
OPEN_PATHS = frozenset(path for (_method, path), need in _NEEDS.items() if need is Need.NOTHING)
"""Paths that answer everybody."""
_PAGES = frozenset(operation.path for operation in OPERATIONS if operation.name in PAGES)

_UNPROVEN = (
    "what a browser adds to requests by itself (cookies, remembered passwords, a login in front) counts for this API "
    "only together with the field X-PRouter-Proof, which the dashboard has; programs send 'Authorization: Bearer TOKEN'"
)


def need_of(method: str, template: str) -> Need | None:
    """Return what a method of a route asks for; None if the table does not say.

    Args:
        template: the route's path, with fields in braces.
    """
    if method == "OPTIONS":
        return Need.VIEWER
    path = template.replace("{rest:path}", "{rest}")
    # A noun such as JOB/file answers with and without a path below it; the table may name one of the two only.
    for name in ("GET", "HEAD") if method == "HEAD" else (method,):
        for candidate in (path, path + _REST, path.removesuffix(_REST)):
            need = _NEEDS.get((name, candidate))
            if need is not None:
                return need
    return None


class AccessControl:
    """Falcon middleware that refuses who may not use a route.

    Args:
        router: knows the owners of jobs.
        gate: whether anybody has to show credentials.
    """

    def __init__(self, router: RouterClient, gate: AccessGate) -> None:
        self._router = router
        self._gate = gate

    def process_request(self, req: ApiRequest, _resp: falcon.Response) -> None:
        """Refuse requests without valid credentials, before anything is said about which paths exist.

        Raises:
            Unauthorized: there are none.
        """
        if req.path in OPEN_PATHS:
            return
        if self._principal(req) is None:
            req.env["prouter.principal"] = self._goer_to_a_page(req)

    def process_resource(self, req: ApiRequest, _resp: Any, _resource: Any, params: dict[str, Any]) -> None:
        """Refuse what the role does not allow.

        Raises:
            Forbidden: the role is not enough, or the job is somebody else's.
            NotFound: the job does not exist.
        """
        principal = self._principal(req)
        if principal is OPEN_ROUTER:
            return
        # A route that is not in the table is a mistake of ours: nobody but an admin may suffer from it.
        need = need_of(req.method, req.uri_template or "") or Need.ADMIN
        if need is Need.NOTHING:
            return
        if principal is None:
            raise Unauthorized(SIGN_IN)
        job = params.get("job")
        owner = None
        if need is Need.OWNER and principal.role is Role.USER:
            owner = self._router.route(params["connection"], params["job"]).record.owner
        if not is_allowed(principal, need, owner):
            raise refusal(principal, need, owner, job=job)

    def _goer_to_a_page(self, req: ApiRequest) -> Principal:
        """Return who opens one of the router's own pages by credentials that browsers add by themselves.

        They count for these pages, as no other page opens them in a way that it could read them.

        Raises:
            Unauthorized: the request is something else.
            Forbidden: a trusted proxy names a user who may do nothing.
        """
        visitor: Principal | None = req.env.get("prouter.visitor")
        to_a_page = req.path in _PAGES and req.method in ("GET", "HEAD")
        if visitor is None:
            refused: PRouterError | None = req.env.get("prouter.refused")
            raise refused or Unauthorized(SIGN_IN)
        if not to_a_page or not (is_navigation(req.get_header) or names_no_mode(req.get_header)):
            raise Unauthorized(_UNPROVEN, code="proof_needed")
        return visitor

    def _principal(self, req: ApiRequest) -> Principal | None:
        found: Principal | None = req.env.get("prouter.principal", None if self._gate.required else OPEN_ROUTER)
        return found
