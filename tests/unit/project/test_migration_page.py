"""docs/migration.md has every key, option and request of the original, and each exists here."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from prouter.cli import main
from prouter.config import AgentConfig, RouterConfig, Section, keys
from prouter.web.admin.operations import OPERATIONS
from tests.integration.test_compatibility import AGENT_FILE, ROUTER_FILE

PAGE = Path(__file__).parents[3] / "docs" / "migration.md"


def rows(heading: str) -> dict[str, str]:
    """Return the rows of the table below a heading: the first cell without code marks, and the second."""
    section = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in section.splitlines() if "|" in line]
    return {row[0].replace("`", ""): row[1] for row in found[2:]}


@pytest.mark.parametrize("title", ["Commands and options", "Keys of the router", "Keys of the agent", "HTTP requests"])
def test_every_row_has_a_verdict(title: str) -> None:
    assert [what for what, here in rows(title).items() if not re.match(r"(same|differs|new name)\b", here)] == []


@pytest.mark.parametrize(
    ("title", "model", "file"),
    [("Keys of the router", RouterConfig, ROUTER_FILE), ("Keys of the agent", AgentConfig, AGENT_FILE)],
)
def test_every_key_of_the_original_is_listed_and_exists(title: str, model: type[Section], file: str) -> None:
    defaults = {key: field.get_default(call_default_factory=True) for key, field in keys(model)}
    listed = rows(title)
    assert set(listed) <= set(defaults)
    originals = {
        name if inner == "{}" else f"{name}.{key}"
        for name, inner in re.findall(r"^(\w+): (\{.*\})$", file, re.MULTILINE)
        for key in re.findall(r"(\w+):", inner) or [""]
    }
    assert set(listed) == originals
    for key, here in listed.items():
        if number := re.search(r"the default is `?([\w.:]+)`?", here):
            assert number[1] in (str(defaults[key]), "the"), key
        if mode := re.search(r"\b(on|off) by default", here):
            assert defaults[key] is (mode[1] == "on"), key


def test_every_option_exists() -> None:
    assert isinstance(main, click.Group)
    commands = [main.get_command(click.Context(main), name) for name in ("up", "agent")]
    known = {option for command in commands if command for one in command.params for option in one.opts}
    options = {what.split()[0] for what in rows("Commands and options") if what.startswith("--")}
    assert options
    assert options <= known


def test_every_request_is_an_operation() -> None:
    known = {f"{one.method.upper()} {one.path}" for one in OPERATIONS}
    assert {what.replace("{path}", "{rest}") for what in rows("HTTP requests")} <= known
