"""The environment variables of jobs (docs/jobs.md).

Later sources win: the agent's environment without what is the agent's own, the agent's properties, the job's place in
the system, its preset, the request. What follows from all of these together, `completed` adds at the end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from prouter.jobs import JobRecord

__all__ = ["ENDPOINT_VARIABLE", "at_home", "base_environment", "completed", "place"]

ENDPOINT_VARIABLE = "DA__PAGENT__JOB_ENDPOINT"
"""Variable with the URL at which a job reports its port; the name is that of the original pRouter."""
REPORT_ID_VARIABLE = "DA__PAGENT__JOB_ID"
MARK_VARIABLE = "PROUTER_JOB_ID"
"""Variable that marks every process of a job. A request cannot change it."""

_PROPERTY_PREFIX = "DA__PAGENT__"
_OWN_PREFIXES = ("PROUTER_", "LISTEN_", "WATCHDOG_")
_OWN = frozenset({"NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY", ENDPOINT_VARIABLE, REPORT_ID_VARIABLE})
_PROXY_VARIABLES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy")
_NO_PROXY = ("no_proxy", "NO_PROXY")
_BELOW_HOME = frozenset({"XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"})
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def base_environment(environ: Mapping[str, str], properties: Mapping[str, Any]) -> dict[str, str]:
    """The agent's environment as jobs may see it, and its properties as ``DA__PAGENT__`` and their exact names.

    Left out is what belongs to the agent alone: its configuration, tokens among it, and what its service manager gave
    it (sd_notify(3), sd_listen_fds(3), systemd.exec(5)). A property that is no text, number or truth value is given as
    JSON. Only what no variable can hold is changed: ``=`` and NUL in a name become ``_``, NULs in a value are left out.
    """
    result = {name: value for name, value in environ.items() if name not in _OWN and not name.startswith(_OWN_PREFIXES)}
    for key, value in properties.items():
        name = _PROPERTY_PREFIX + re.sub(r"[=\0]", "_", str(key))
        result[name] = _property_text(value).replace("\0", "")
    return result


def completed(environment: Mapping[str, str], requested: Mapping[str, str]) -> dict[str, str]:
    """A job's whole environment with what follows from the rest of it.

    Where a proxy is set, loopback is reached without it, or the job could not report its port to the agent nor talk to
    itself; unless the request says itself what goes round the proxy. Python's output is not held back in buffers, so
    that it is in the job's log at once.

    Args:
        environment: everything so far.
        requested: the request's own part of it.
    """
    result = {"PYTHONUNBUFFERED": "1", **environment}
    proxied = any(environment.get(name) or environment.get(name.upper()) for name in _PROXY_VARIABLES)
    if proxied and not any(name in requested for name in _NO_PROXY):
        given = {name: environment.get(name, "") for name in _NO_PROXY}
        for name in _NO_PROXY:
            result[name] = _around_proxy(given[name] or next(filter(None, given.values()), ""))
    return result


def at_home(environment: Mapping[str, str], directory: str) -> dict[str, str]:
    """The environment with another home, and without what leads to the old one (XDG Base Directory Specification)."""
    kept = {name: value for name, value in environment.items() if name not in _BELOW_HOME}
    return {**kept, "HOME": directory}


def _around_proxy(hosts: str) -> str:
    """A NO_PROXY list with the loopback names in it; ``*`` has them already."""
    listed = [host.strip() for host in hosts.split(",")]
    if "*" in listed:
        return hosts
    return ",".join([*filter(None, [hosts.strip().strip(",")]), *(host for host in _LOOPBACK if host not in listed)])


def _property_text(value: object) -> str:
    if isinstance(value, (str, bool, int, float)):
        return str(value)
    return json.dumps(value, default=str)


def place(record: JobRecord, sandbox: str, *, report_to: str | None = None) -> dict[str, str]:
    """The variables that tell a job where it is; `report_to` is the URL for its ports, if it has to report any."""
    variables = {
        MARK_VARIABLE: record.uid,
        "PROUTER_JOB_PATH": record.path,
        "PROUTER_BASE_URL": f"{record.path}/http/",
        "PROUTER_BASE_PATH": f"{record.path}/http",
        "PROUTER_SANDBOX": sandbox,
    }
    if report_to is not None:
        variables[ENDPOINT_VARIABLE] = report_to
        variables[REPORT_ID_VARIABLE] = record.uid
    return variables
