"""What each route asks for, by the name of its operation: the one table of who may do what.

`prouter.web.admin.operations` has the operations; the jobs' own HTTP, which is none of them, is here as well. A test
walks all routes with all roles, and fails for a route that is not in this table.
"""

from __future__ import annotations

from collections.abc import Mapping

from prouter.access.roles import Need

__all__ = ["JOB_HTTP", "NEEDS", "PAGES"]

JOB_HTTP = "http"
"""``JOB/http…`` and the jobs' host names, requests to upgrade included."""

NEEDS: Mapping[str, Need] = {
    # the router
    "dashboard": Need.VIEWER,
    "info": Need.VIEWER,
    "connections": Need.VIEWER,
    "connection": Need.VIEWER,
    "drain": Need.OPERATOR,
    "resume": Need.OPERATOR,
    "shutdown": Need.ADMIN,
    "events": Need.VIEWER,
    "healthz": Need.NOTHING,  # load balancers have no token
    "readyz": Need.NOTHING,
    "metrics": Need.VIEWER,
    "openapi": Need.VIEWER,
    # access
    "publicKeys": Need.NOTHING,  # jobs' servers have no token
    "signInPage": Need.NOTHING,
    "signIn": Need.NOTHING,
    "signOut": Need.VIEWER,
    "whoami": Need.VIEWER,
    "tokens": Need.ADMIN,
    "createToken": Need.ADMIN,
    "revokeToken": Need.ADMIN,
    # jobs
    "list": Need.VIEWER,
    "create": Need.USER,
    "run": Need.USER,
    "jobInfo": Need.VIEWER,
    "jobInfoByPost": Need.VIEWER,
    "explainJob": Need.VIEWER,
    "start": Need.OWNER,
    "wait": Need.VIEWER,  # it changes nothing
    "remove": Need.OWNER,
    "signal": Need.OWNER,
    "stop": Need.OWNER,
    "log": Need.OWNER,
    JOB_HTTP: Need.OWNER,
    "tcp": Need.OWNER,
    # ways in to a job
    "pass": Need.OWNER,
    "shares": Need.OWNER,
    "share": Need.OWNER,
    "unshare": Need.OWNER,
    "enter": Need.NOTHING,  # it asks by itself, because a form cannot send a field with a proof
    "openJob": Need.NOTHING,
    # files
    "list_sandbox": Need.OWNER,
    "download": Need.OWNER,
    "headers": Need.OWNER,
    "delete": Need.OWNER,
    "upload_post": Need.OWNER,
    "upload_put": Need.OWNER,
    # archives
    "pack_sandbox": Need.OWNER,
    "pack_sandbox_head": Need.OWNER,
    "unpack_sandbox": Need.OWNER,
    "unpack_sandbox_put": Need.OWNER,
    "pack_directory": Need.OWNER,
    "pack_directory_head": Need.OWNER,
    "unpack_directory": Need.OWNER,
    "unpack_directory_put": Need.OWNER,
    # WebSocket bridges
    "bridges": Need.VIEWER,
    "bridge_root": Need.OWNER,
    "bridge": Need.OWNER,
    "unbridge": Need.OWNER,
}

PAGES = frozenset({"dashboard"})
"""Operations that send one of the router's own pages, and change nothing: a browser's own credentials count for them
when it goes to the page, as no other page can read it (`prouter.web.isolation`)."""
