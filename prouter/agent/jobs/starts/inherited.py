"""The part of the agent's environment that jobs get: nothing that looks like a secret, unless `jobs.env_pass` names it.

What looks like a secret is a guess by name and value. It protects from accidents, such as a token in the environment of
the shell in which somebody started an agent. Where it matters, `jobs.env_pass` lists what jobs need.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from prouter.config.agent import AgentJobs

__all__ = ["ALWAYS", "environment_of_jobs", "inherited"]

_log = logging.getLogger("prouter.agent")

ALWAYS = frozenset({"PATH", "HOME", "LANG", "TZ", "TERM"})
"""Variables that jobs get in any case."""

_EVERYTHING = "*"
_PROXIES = frozenset({"http_proxy", "https_proxy", "ftp_proxy", "all_proxy"})
_HANDLES = frozenset({"SSH_AUTH_SOCK", "GPG_AGENT_INFO", "KUBECONFIG", "NETRC", "PGPASSFILE"})
"""Variables that lead to credentials, or to a program that uses them for whoever asks."""
_HARMLESS = frozenset({"PWD", "OLDPWD"})
_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|COOKIE|AUTHORIZATION|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY"
    r"|CONNECTION_?STRING|(^|_)(AUTH|PASS|PWD|DSN|KEY|PAT|JWT)(_|$)",
)
_PASSWORD_IN_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s@]*:[^/?#\s]*@", re.IGNORECASE | re.ASCII)
_SECRET_VALUE = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----|(^|\W)prt_[A-Za-z0-9_-]{20}")
_USER = re.compile(r"(?<=://)[^/?#\s]*@|^[^/?#\s]*@")


def environment_of_jobs(jobs: AgentJobs) -> dict[str, str]:
    """The part of this process's environment that jobs get by their settings. The log names withheld secrets."""
    # Jobs with users of their own get nothing that is not listed.
    passed, withheld = inherited(os.environ, () if jobs.env_pass is None and jobs.user is not None else jobs.env_pass)
    if withheld:
        _log.info("event=environment_withheld names=%s setting=jobs.env_pass", ",".join(withheld))
    return passed


def inherited(environ: Mapping[str, str], patterns: Sequence[str] | None) -> tuple[dict[str, str], list[str]]:
    """The variables of the agent's environment that jobs get, and the names of those withheld as secrets, sorted.

    Proxies are passed without user and password, or a job could reach nothing where a proxy is needed.

    Args:
        patterns: names and shell patterns of variables to pass beside `ALWAYS`; None for all that are no secrets. ``*``
            stands for these as well. Any other pattern passes what it matches, secret or not.
    """
    wanted = (_EVERYTHING,) if patterns is None else tuple(patterns)
    named = tuple(pattern for pattern in wanted if pattern != _EVERYTHING)
    passed: dict[str, str] = {}
    withheld: list[str] = []
    for name, value in environ.items():
        if any(fnmatchcase(name, pattern) for pattern in named):
            passed[name] = value
        elif _EVERYTHING not in wanted and name not in ALWAYS:
            continue
        elif name.lower() in _PROXIES:
            anonymous = _USER.sub("", value)
            if "@" not in anonymous:
                passed[name] = anonymous
            if passed.get(name) != value:
                withheld.append(name)
        elif _is_secret(name, value):
            withheld.append(name)
        else:
            passed[name] = value
    return passed, sorted(withheld)


def _is_secret(name: str, value: str) -> bool:
    upper = name.upper()
    if upper in _HARMLESS or name in ALWAYS:
        return False
    return (
        upper in _HANDLES
        or _SECRET_NAME.search(upper) is not None
        or _PASSWORD_IN_URL.search(value) is not None
        or _SECRET_VALUE.search(value) is not None
    )
