"""The package keeps to its floor plan: the order of the table in docs/architecture.md is the order of imports."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.import_graph import ImportGraph

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "prouter"
PAGE = ROOT / "docs" / "architecture.md"


def rooms() -> list[str]:
    """The first column of the floor plan, from the top."""
    return re.findall(r"^\| `(prouter/[^`]*)` \|", PAGE.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def graph() -> ImportGraph:
    return ImportGraph(PACKAGE)


def test_every_folder_is_on_the_floor_plan() -> None:
    folders = {f"{path.parent.relative_to(ROOT)}/" for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE}
    assert {room for room in rooms() if room.endswith("/")} == folders
    assert all((ROOT / room).exists() for room in rooms())


def test_no_import_goes_up_the_floor_plan(graph: ImportGraph) -> None:
    upward = [f"{importer} imports {imported}" for importer, imported in graph.upward(rooms())]
    assert not upward, "\n".join(upward)


def test_no_modules_import_each_other(graph: ImportGraph) -> None:
    cycles = [" imports ".join(str(file) for file in cycle) for cycle in graph.cycles()]
    assert not cycles, "\n".join(cycles)


def test_a_folder_of_unit_tests_stands_for_a_folder_of_the_package() -> None:
    unit = ROOT / "tests" / "unit"
    folders = {path.parent.relative_to(unit) for path in unit.rglob("test_*.py")} - {Path("project")}
    assert not [str(folder) for folder in folders if not (PACKAGE / folder).is_dir()]


@pytest.mark.parametrize(
    "line",
    ["import house.up.b", "from house.up.b import thing", "from ..up import b", "def f():\n    from house.up import b"],
)
def test_an_upward_import_and_a_cycle_are_named_with_both_files(tmp_path: Path, line: str) -> None:
    house = tmp_path / "house"
    for folder in ("up", "down"):
        (house / folder).mkdir(parents=True)
        (house / folder / "__init__.py").touch()
    (house / "__init__.py").touch()
    (house / "up" / "b.py").write_text("from house.down import a\n")
    (house / "down" / "a.py").write_text(f"{line}\n")
    graph = ImportGraph(house)
    a, b = Path("house/down/a.py"), Path("house/up/b.py")
    assert graph.upward(["house/", "house/up/", "house/down/"]) == [(a, b)]
    assert [set(cycle) for cycle in graph.cycles()] == [{a, b}]
