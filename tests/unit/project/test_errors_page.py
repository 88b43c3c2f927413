"""docs/errors.md has every code of an error that a client can get, with its status, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "errors.md"
LEFT_OUT = ("client", "cli", "keeper")
"""Folders whose errors are no answers of the router."""
ELSEWHERE = {"outside_prefix"}
"""Codes that the source does not give as the argument or the attribute ``code``."""
AT_START = {"unsupported_gunicorn"}
"""Codes of errors that end a process before it serves anybody."""


def statuses() -> dict[str, int]:
    """Return the statuses of all classes of errors, by their names, as the source has them."""
    found: dict[str, tuple[str, int | None]] = {}
    for node in classes():
        status = assigned(node).get("status")
        base = node.bases[0].id if node.bases and isinstance(node.bases[0], ast.Name) else ""
        found[node.name] = (base, status if isinstance(status, int) else None)
    resolved: dict[str, int] = {}
    for name in found:
        base, status = found[name]
        while status is None and base in found:
            base, status = found[base]
        if status is not None:
            resolved[name] = status
    return resolved


@cache
def trees() -> list[ast.Module]:
    """Return the syntax trees of the package without the folders that are left out."""
    package = ROOT / "prouter"
    files = [path for path in package.rglob("*.py") if path.relative_to(package).parts[0] not in LEFT_OUT]
    return [ast.parse(path.read_text()) for path in files]


def classes() -> Iterator[ast.ClassDef]:
    for tree in trees():
        yield from (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def assigned(node: ast.ClassDef) -> dict[str, object]:
    """Return the constants that a class's body assigns to names."""
    found: dict[str, object] = {}
    for one in node.body:
        if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name):
            target, value = one.targets[0].id, one.value
        elif isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and one.value is not None:
            target, value = one.target.id, one.value
        else:
            continue
        if isinstance(value, ast.Constant):
            found[target] = value.value
    return found


def codes() -> Iterator[tuple[str, int | None]]:
    """Return each code in the source with its status, None where the source alone does not tell it."""
    known = statuses()
    for node in classes():
        code = assigned(node).get("code")
        if isinstance(code, str) and node.name in known:
            yield code, known[node.name]
    for tree in trees():
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            for keyword in call.keywords:
                if keyword.arg == "code" and isinstance(keyword.value, ast.Constant):
                    name = call.func.id if isinstance(call.func, ast.Name) else ""
                    if isinstance(keyword.value.value, str):
                        yield keyword.value.value, known.get(name)


def listed() -> dict[str, set[int]]:
    """Return the codes of the page with their statuses."""
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ([\d, ]+) \| \S.* \|$", PAGE.read_text(), re.MULTILINE)
    return {
        code: {int(status) for status in shown.split(", ")} for cell, shown in rows for code in re.findall(r"\w+", cell)
    }


def test_every_code_is_listed_with_its_status() -> None:
    page = listed()
    missing = sorted({code for code, status in codes() if code not in page or (status and status not in page[code])})
    assert set(missing) - AT_START == set(), "add them to docs/errors.md"


def test_every_listed_code_exists() -> None:
    assert set(listed()) - {code for code, _ in codes()} - ELSEWHERE == set()


def test_every_event_is_in_the_table_of_events() -> None:
    section = (ROOT / "docs" / "http-api.md").read_text().partition("\n## Events\n")[2].partition("\n## ")[0]
    table = set(re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE))
    ledger = (ROOT / "prouter" / "broker" / "jobs" / "ledger.py").read_text()
    changes = (ROOT / "prouter" / "broker").rglob("*.py")
    assert table - {"dropped"} == set(re.findall(r"_(?:changed\(entry|publish\()(?:, )?\"([\w.]+)\"", ledger))
    told = {change for path in changes for change in re.findall(r"agent_changed\(\w+, \"(\w+)\"\)", path.read_text())}
    assert told
    assert told <= set(re.findall(r"`(\w+)`", section))
