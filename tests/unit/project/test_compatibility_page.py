"""Every line of docs/compatibility.md has a verdict and names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "compatibility.md"
FILES = list((ROOT / "tests").rglob("test_*.py"))


def lines() -> list[list[str]]:
    """The cells of every line of the page's tables, without heads and rules."""
    rows = [
        re.split(r"(?<!\\)\|", line.strip())[1:-1] for line in PAGE.read_text().splitlines() if line.startswith("|")
    ]
    return [[cell.strip() for cell in row] for row in rows if not re.fullmatch(r"[-: ]+|what", row[0].strip())]


def test_there_are_lines() -> None:
    assert len(lines()) > 60


@pytest.mark.parametrize("line", lines(), ids=lambda line: line[0][:50])
def test_every_line_says_what_we_do_and_names_an_existing_test(line: list[str]) -> None:
    what, here, named = line
    assert what
    assert re.match(r"(same|better|different)\b", here), here
    if here.startswith("different"):
        assert len(here) > len("different: ") + 10, "why?"
    tests = re.findall(r"`(\w+\.py)::(\w+)`", named)
    assert tests, named
    for file, test in tests:
        texts = [path.read_text() for path in FILES if path.name == file]
        assert texts, f"there is no {file}"
        assert any(re.search(rf"^def {test}\(", text, re.MULTILINE) for text in texts), f"{file} has no {test}"
