"""tools/programs lists every program that tests call."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

from tests.support import programs

ROOT = Path(__file__).parents[3]
BASE = frozenset({"sh", "bash", "sleep", "mount", "umount", "true", "setpriv"})
"""Programs that every Debian has."""
CALLS = frozenset({"run", "Popen", "check_output", "check_call"})


def called(path: Path) -> set[str]:
    """Return the programs that a test file starts by a literal name."""
    found = set()
    tree = ast.parse(path.read_text())
    lists = {
        target.id: node.value.elts[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List) and node.value.elts
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in CALLS:
            continue
        if not isinstance(node.func.value, ast.Name) or node.func.value.id != "subprocess" or not node.args:
            continue
        argv = node.args[0]
        first: ast.expr | None = argv.elts[0] if isinstance(argv, ast.List) and argv.elts else argv
        first = first.value if isinstance(first, ast.Starred) else first
        first = lists.get(first.id) if isinstance(first, ast.Name) else first
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            found.add(first.value)
    return found


def test_every_program_that_tests_start_is_listed() -> None:
    files = [
        path
        for folder in ("unit", "integration", "faults", "simulation", "support", "jobs")
        for path in (ROOT / "tests" / folder).rglob("*.py")
    ]
    names = {name: path for path in files for name in called(path)}
    assert {"ip", "tar", "openssl", "mount"} <= set(names)
    unlisted = {name: path.name for name, path in names.items() if name not in BASE | set(programs.packages("test"))}
    assert not unlisted, "add them to tools/programs"


def test_a_program_that_is_not_listed_is_an_error_and_no_skip() -> None:
    with pytest.raises(AssertionError, match="'frobnicate' is not listed in tools/programs"):
        programs.program("frobnicate")


def test_a_missing_program_skips_at_a_desk_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(programs, "_SBIN", "/nowhere")
    monkeypatch.delenv("CI", raising=False)
    assert programs.missing("curl", "ps") == "curl (Debian package curl), ps (Debian package procps)"
    assert programs.needed("curl").args == (True,)
    monkeypatch.setenv("CI", "1")
    assert programs.needed("curl").args == (False,)


def test_need_refuses_groups_that_are_not_in_the_list() -> None:
    done = subprocess.run(["sh", ROOT / "tools" / "need", "nonsense"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "need: tools/programs has no group 'nonsense'\n")
