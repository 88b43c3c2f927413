"""Paths of requests: percent-encoded names, queries, jobs' paths."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote, urlencode, urlsplit

__all__ = ["encoded", "is_directory_name", "job_path", "joined", "query"]

_JOB = re.compile(r"/jobs/([^/?#]+)/([^/?#]+)(?:[/?#].*)?\Z", re.DOTALL)

Value = str | int | float | bool | None | Iterable[str]


def encoded(path: str | os.PathLike[str]) -> str:
    """Return a path in a sandbox for a URL, byte by byte.

    ``.`` and double slashes mean nothing. A ``..`` and a leading slash stay, so that the router can refuse them; their
    dots are encoded, because whatever is between would otherwise resolve them into a path of another operation.
    """
    text = os.fspath(path)
    parts = [part for part in text.split("/") if part not in ("", ".")]
    said = "/".join("%2E%2E" if part == ".." else quote(os.fsencode(part), safe="") for part in parts)
    return f"/{said}" if text.startswith("/") else said


def joined(directory: str, name: str) -> str:
    """Return the path of a name in a directory of the sandbox, whose root is ``.`` or empty."""
    return name if directory in ("", ".", "./") else f"{directory.rstrip('/')}/{name}"


def is_directory_name(path: str) -> bool:
    """Whether a path can only mean a directory: ``.``, ``data/``, ``data/.``"""
    return path == "" or path.endswith("/") or path.rpartition("/")[2] == "."


def query(**parameters: Value) -> str:
    """Return a query with its question mark; without parameters that are None or False, and empty without any."""
    pairs: list[tuple[str, str]] = []
    for name, value in parameters.items():
        if value is None or value is False:
            continue
        if isinstance(value, str):
            pairs.append((name, value))
        elif isinstance(value, bool):
            pairs.append((name, "1"))
        elif isinstance(value, (int, float)):
            pairs.append((name, f"{value:g}" if isinstance(value, float) else str(value)))
        else:
            pairs.extend((name, one) for one in value)
    return f"?{urlencode(pairs, errors='surrogateescape')}" if pairs else ""


def job_path(text: str) -> str | None:
    """Return the job's path in a path or a URL below it; None if there is none, so that it may be a uid."""
    path = urlsplit(text).path if "://" in text else text
    match = _JOB.fullmatch(path)
    return f"/jobs/{match[1]}/{match[2]}" if match else None


def segment(name: str) -> str:
    """Return a name as one segment of a path."""
    return "%2E" * len(name) if name in (".", "..") else quote(name, safe="")


def merged(*headers: Mapping[str, str] | None) -> dict[str, str]:
    """Return header fields together; later ones override earlier ones."""
    result: dict[str, str] = {}
    for some in headers:
        result.update(some or {})
    return result
