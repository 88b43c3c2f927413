"""A test in a folder gets what the folder above means by a fixture's name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[2]


def fixtures(conftest: Path) -> dict[str, str]:
    """The names of a file's fixtures, and what each gives."""
    functions = [node for node in ast.parse(conftest.read_text()).body if isinstance(node, ast.FunctionDef)]
    return {
        node.name: re.sub(r"^Iterator\[(.*)\]$", r"\1", ast.unparse(node.returns or ast.Constant(None)))
        for node in functions
        if any("fixture" in ast.unparse(one) for one in node.decorator_list)
    }


def test_no_fixture_hides_one_of_another_type() -> None:
    found = {path.parent: fixtures(path) for path in TESTS.rglob("conftest.py")}
    assert found[TESTS]["jobs"] == "Path"
    hidden = [
        f"{folder.relative_to(TESTS)}: {name} is {given}, above it is {found[above][name]}"
        for folder, names in found.items()
        for name, given in names.items()
        for above in folder.parents
        if found.get(above, {}).get(name, given) != given
    ]
    assert not hidden
