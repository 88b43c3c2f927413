"""``python -O`` leaves assertions out: nothing may happen in one."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[3] / "prouter"
ACTING = {"next", "anext", "pop", "popleft", "get", "read", "recv", "send", "write", "close", "remove", "acquire"}


def acts(node: ast.AST) -> bool:
    """Whether an expression waits, yields, assigns, or calls what changes something."""
    if isinstance(node, (ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)):
        return True
    if not isinstance(node, ast.Call):
        return False
    name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
    return name in ACTING


def test_no_assertion_does_anything() -> None:
    found = [
        f"{path}:{statement.lineno}"
        for path in PACKAGE.rglob("*.py")
        for statement in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(statement, ast.Assert) and any(map(acts, ast.walk(statement.test)))
    ]
    assert not found, "\n".join(found)
