"""Share links of a job: made, listed and ended."""

from __future__ import annotations

import logging
import time
from typing import Any

import falcon
import gevent

from prouter.access.gate import LOOK_EVERY, AccessGate
from prouter.access.requests import ShareRequest
from prouter.access.roles import OPEN_ROUTER
from prouter.access.share_file import Share, make_share
from prouter.config import ConfigError
from prouter.errors import Conflict, InvalidRequest, NotFound, PRouterError
from prouter.jobs import rfc3339
from prouter.web.admin.requests.body import discard_body, read_model
from prouter.web.admin.requests.context import ApiRequest, principal_of, send_json
from prouter.web.admin.resources.passes import Passes
from prouter.web.proxy.entrance import needs_own_origin, unusable
from prouter.web.router_client import RouterClient
from prouter.web.routes import JobRoute

__all__ = ["Shares", "forget_removed_jobs"]

log = logging.getLogger("prouter.web")

_MAX_KEY = 255


class Shares:
    """``JOB/share`` and ``JOB/share/ID``

    Args:
        router: knows jobs.
        gate: knows share links.
        passes: knows where jobs are.
        sandboxed: whether jobs without host names of their own may be shared.
    """

    def __init__(self, router: RouterClient, gate: AccessGate, passes: Passes, *, sandboxed: bool) -> None:
        self._router = router
        self._gate = gate
        self._passes = passes
        self._sandboxed = sandboxed

    def on_get(self, _req: ApiRequest, resp: falcon.Response, connection: str, job: str) -> None:
        """The job's share links, without their secrets."""
        self._router.route(connection, job)
        now = time.time()
        try:
            shares = [share for share in self._gate.shares.all() if share.job == job and share.valid(now)]
        except ConfigError as error:
            raise unusable(error) from error
        send_json(resp, {"shares": [self._described(share) for share in shares]})

    on_head = on_get

    def on_post(self, req: ApiRequest, resp: falcon.Response, connection: str, job: str) -> None:
        """Make one; its URL is in this answer and nowhere else."""
        request = read_model(ShareRequest, req)
        key = req.get_header("Idempotency-Key")
        if key is not None and not 0 < len(key) <= _MAX_KEY:
            raise InvalidRequest(f"Invalid request: Idempotency-Key must have 1 to {_MAX_KEY} characters")
        principal = principal_of(req)
        route = self._router.checked_route(connection, job)
        if principal is OPEN_ROUTER:
            raise Conflict(
                "this router asks nobody for a token, so everybody can open the job already, and a link would restrict "
                "nobody; 'prouter token create' makes the first token",
                job=job,
                code="access_open",
            )
        self._check_place(route)
        share, secret = make_share(
            job,
            name=request.name,
            read_only=request.methods == "read",
            maker=principal,
            owner=route.record.owner,
            now=time.time(),
            lifetime=request.expires,
            key=key or "",
        )
        try:
            self._gate.shares.add(share, now=share.created)
        except ConfigError as error:
            raise unusable(error) from error
        self._gate.look()
        url = self._passes.shared_url(self._passes.public(req), route, secret)
        send_json(resp, {**self._described(share), "url": url}, 201)

    def on_delete_one(self, req: ApiRequest, resp: falcon.Response, connection: str, job: str, share: str) -> None:
        """End one; answered once no worker accepts it."""
        discard_body(req)
        self._router.route(connection, job)
        try:
            if not self._gate.shares.end(share, job):
                raise NotFound(f"job '{job}' has no share link '{share}'", job=job)
        except ConfigError as error:
            raise unusable(error) from error
        self._gate.look()
        time.sleep(LOOK_EVERY)  # the other workers go by what they saw for so long
        resp.status = falcon.HTTP_204

    def _check_place(self, route: JobRoute) -> None:
        """Refuse to share a job whose visitors could not be kept apart from other jobs.

        Raises:
            Forbidden: jobs have no host names of their own, and sandboxes are off, or of no use to this job.
        """
        if self._passes.domain:
            return
        uid = route.record.uid
        if not self._sandboxed:
            raise needs_own_origin(f"job '{uid}' cannot be shared", uid, code="share_needs_own_origin")
        if route.record.path_mode == "keep":
            text = f"job '{uid}' cannot be shared in a sandbox, because its server's links hold its path (expose.path)"
            raise needs_own_origin(text, uid, code="share_needs_own_origin")

    def _described(self, share: Share) -> dict[str, Any]:
        return {
            "id": share.id,
            "name": share.name,
            "methods": "read" if share.read_only else "all",
            "created_by": share.maker,
            "created": rfc3339(share.created),
            "expires": rfc3339(share.expires) if share.expires is not None else None,
            "valid": self._gate.share(share.id) is not None,
        }


def forget_removed_jobs(router: RouterClient, gate: AccessGate) -> None:
    """Delete share links of jobs that were removed, now and from now on."""

    def drop(jobs: set[str]) -> None:
        try:
            gate.shares.drop(jobs)
        except ConfigError as error:
            log.error("event=shares_not_dropped error=%r", str(error))

    def on_event(name: str, body: dict[str, Any]) -> None:
        if name == "job.removed" and (job := str(body["record"]["uid"])) in gate.shared_jobs():
            gevent.spawn(drop, {job})

    def look() -> None:
        gone = set()
        for job in gate.shared_jobs():
            try:
                router.checked_route("", job)
            except NotFound:
                gone.add(job)
            except PRouterError:
                return  # the broker cannot be asked now
        if gone:
            drop(gone)

    router.subscribe(on_event)
    gevent.spawn(look)
