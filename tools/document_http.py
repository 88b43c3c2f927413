"""Write docs/http-reference.md from the OpenAPI document; ``--check`` fails if it is not up to date."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prouter.web.admin.openapi import document
from tools.generated_page import write_or_check

PAGE = Path(__file__).parents[1] / "docs" / "http-reference.md"
_JOB = "/jobs/{connection}/{job}"
_SECTIONS = (
    ("Files and archives", (f"{_JOB}/file", f"{_JOB}/archive")),
    ("Ways into a job", (f"{_JOB}/share", f"{_JOB}/pass", f"{_JOB}/tcp", f"{_JOB}/wsconnect", "/enter")),
    ("Jobs", ("/jobs",)),
    ("Access", ("/tokens", "/whoami", "/sign-in", "/sign-out", "/.well-known")),
    ("The router and its agents", ("/",)),
)
"""Titles, and the beginnings of the paths below them; the first that fits counts."""
_ORDER = ("Jobs", "Files and archives", "Ways into a job", "Access", "The router and its agents")
_HEAD = """\
# HTTP reference

Every request of the API, as `/openapi.json` describes it; this page is made from the same document. How the requests
belong together is told in [the HTTP API](http-api.md), what error codes mean in [error codes](errors.md), and roles in
[access](access.md#who-may-do-what). `JOB` stands for `/jobs/{connection}/{job}`, the `path` of a job.

Errors are problem documents (RFC 9457) with the fields of [Problem](#problem). Besides the statuses that are named, any
request may get 401, 403, 429 and 503.
"""
_ANY = frozenset({"401", "403", "429", "503"})


def main() -> int:
    """Write or check the page and return the exit status."""
    return write_or_check(PAGE, "\n".join(_page(document())).rstrip() + "\n")


def _page(found: dict[str, Any]) -> Iterator[str]:
    sections: dict[str, list[str]] = {title: [] for title in _ORDER}
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            if method == "parameters":  # those of the path, which its own fields name
                continue
            sections[_section_of(path)] += _operation(method.upper(), path, operation)
    yield _HEAD
    for title, lines in sections.items():
        yield f"## {title}\n"
        yield from lines
    yield "## Bodies\n"
    for name, schema in sorted(found["components"]["schemas"].items()):
        yield from _model(name, schema)


def _section_of(path: str) -> str:
    return next(title for title, beginnings in _SECTIONS if path.startswith(beginnings))


def _operation(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"### {method} {path.replace(_JOB, 'JOB')}\n"
    yield f"{operation['summary']} {operation.get('description', '')}".strip() + "\n"
    parameters = [one for one in operation.get("parameters", ()) if one["in"] != "path"]
    if parameters:
        yield "| parameter | in | type | meaning |\n| --- | --- | --- | --- |"
        for one in parameters:
            meaning = _cell(one.get("description", ""))
            yield f"| `{one['name']}` | {one['in']} | {_type(one['schema'])} | {meaning} |"
        yield ""
    if "requestBody" in operation:
        yield f"Body: {_content(operation['requestBody'])}\n"
    yield from _responses(operation["responses"])


def _responses(responses: dict[str, Any]) -> Iterator[str]:
    named = []
    for status, response in responses.items():
        if status in _ANY:
            continue
        content = "" if int(status[0]) >= 4 or "content" not in response else f" ({_content(response)})"
        named.append(f"{status}{content}")
    yield f"Responses: {', '.join(named)}.\n"


def _content(body: dict[str, Any]) -> str:
    kinds = []
    for media, content in body["content"].items():
        schema = content.get("schema", {})
        kinds.append(_type(schema) if {"$ref", "anyOf"} & set(schema) else f"`{media}`")
    return " or ".join(dict.fromkeys(kinds))


def _model(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f"### {name}\n"
    if "description" in schema:
        yield _cell(schema["description"]) + "\n"
    properties = schema.get("properties", {})
    if not properties:
        yield f"One of {_type(schema)}.\n"
        return
    required = schema.get("required", ())
    yield "| field | type | meaning |\n| --- | --- | --- |"
    for field, about in properties.items():
        mark = "" if field in required else ", optional"
        yield f"| `{field}` | {_type(about)}{mark} | {_cell(about.get('description', ''))} |"
    yield ""


def _type(schema: dict[str, Any]) -> str:
    """Return the type of a value in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(_type(one) for one in schema[key]))
    if "const" in schema:
        return f"`{schema['const']}`"
    if {"", "yes", "no"} <= set(schema.get("enum", ())):
        return "`yes` or `no`"
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


if __name__ == "__main__":
    sys.exit(main())
