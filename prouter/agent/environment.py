"""What a job sees in its environment, and the templates filled into its arguments (see docs/jobs.md).

Later sources win: the agent's environment without what is the agent's own, the agent's properties, the job's place in
the system, its preset, the request.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from prouter.jobs import JobRecord

__all__ = ["ENDPOINT_VARIABLE", "base_environment", "fill", "fill_all", "place"]

ENDPOINT_VARIABLE = "DA__PAGENT__JOB_ENDPOINT"
"""URL at which a job reports its port; the original's name."""
REPORT_ID_VARIABLE = "DA__PAGENT__JOB_ID"
MARK_VARIABLE = "PROUTER_JOB_ID"
"""Marks every process of a job; not even the request may change it."""

_PROPERTY_PREFIX = "DA__PAGENT__"
_OWN_PREFIXES = ("PROUTER_", "LISTEN_", "WATCHDOG_")
_OWN = frozenset({"NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY", ENDPOINT_VARIABLE, REPORT_ID_VARIABLE})
_TOKEN = re.compile(r"\{(?:port|socket|base_url|sandbox)\}")


def base_environment(environ: Mapping[str, str], properties: Mapping[str, Any]) -> dict[str, str]:
    """The agent's environment as jobs may see it, and its properties as ``DA__PAGENT__<KEY>``, the key in upper case.

    Left out is what belongs to the agent alone: its configuration, tokens among it, and what its service manager gave
    it (sd_notify(3), sd_listen_fds(3), systemd.exec(5)). A property that is no text, number or truth value is given as
    JSON.
    """
    result = {name: value for name, value in environ.items() if name not in _OWN and not name.startswith(_OWN_PREFIXES)}
    for key, value in properties.items():
        name = _PROPERTY_PREFIX + re.sub(r"[=\0]", "_", str(key)).upper()
        result[name] = _property_text(value).replace("\0", "")
    return result


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
        "PROUTER_SANDBOX": sandbox,
    }
    if report_to is not None:
        variables[ENDPOINT_VARIABLE] = report_to
        variables[REPORT_ID_VARIABLE] = record.uid
    return variables


def fill(text: str, tokens: Mapping[str, str]) -> str:
    """Replace ``{port}``, ``{socket}``, ``{base_url}`` and ``{sandbox}`` by what `tokens` holds for them.

    A token without a value and all other braces stay as they are, so that JSON passes.
    """
    if "{" not in text:
        return text
    return _TOKEN.sub(lambda match: tokens.get(match[0], match[0]), text)


def fill_all(texts: Iterable[str], tokens: Mapping[str, str]) -> list[str]:
    """`fill` for each of several texts."""
    return [fill(text, tokens) for text in texts]
