"""Every page of the documentation is listed, and every link leads somewhere. `make docs` checks the site as a whole."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tools.site_texts import listing, summaries

ROOT = Path(__file__).parents[3]
BESIDE = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
PAGES = [*(ROOT / name for name in BESIDE), *sorted((ROOT / "docs").rglob("*.md"))]


def links(page: Path) -> list[str]:
    """Return the relative links of a page outside code blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        target, _, anchor = link.partition("#")
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), link
        if anchor:
            assert anchor in anchors(found), link


def test_the_readme_is_short_and_its_picture_small() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    assert (ROOT / "docs" / "dashboard.png").stat().st_size < 200_000


def test_the_index_lists_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    listed = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    assert {page for page in PAGES if page.is_relative_to(index.parent) and page != index} <= listed


def test_the_site_lists_every_page() -> None:
    def pages(node: object) -> list[str]:
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
        return [node] if isinstance(node, str) else [page for child in children for page in pages(child)]

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    docs = ROOT / "docs"
    assert {str(page.relative_to(docs)) for page in PAGES if page.is_relative_to(docs)} <= set(pages(nav)), (
        "add it to nav in mkdocs.yml"
    )


def test_the_list_for_programs_has_every_page_with_a_line_about_it() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    text = listing("pRouter", "about it", nav, summaries((ROOT / "docs" / "index.md").read_text()))
    assert text.startswith("# pRouter\n\n> about it\n\n## Start\n")
    names = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")} - {
        "index.md"
    }
    for name in names:
        assert re.search(rf"^- \[[^\]]+\]\({re.escape(name)}\): \S", text, re.MULTILINE), name


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/architecture.md", "docs/releasing.md"])
def test_files_that_a_page_names_exist(name: str) -> None:
    named = re.findall(r"`((?:prouter|tests|tools|docs)/[\w./-]+|[A-Z]+\.md)`", (ROOT / name).read_text())
    assert len(named) > 1
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    "tool", [f"tools.document_{what}" for what in ("configuration", "metrics", "client", "cli", "http")]
)
def test_tables_that_are_made_from_code_are_up_to_date(tool: str) -> None:
    result = subprocess.run([sys.executable, "-m", tool, "--check"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
