"""MkDocs hook: every page of the site as Markdown beside its HTML, and ``llms.txt``, which lists them for programs.

``llms.txt`` has the form of https://llmstxt.org: a title, a summary, and for each section of the navigation its pages
with a line about each. The lines are those of the tables in ``docs/index.md``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # so that tests can use this module without MkDocs
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

__all__ = ["listing", "on_env", "sections", "summaries"]

_ROW = re.compile(r"^\| \[[^\]]+\]\(([^)\s]+)\) \| (.+?) \|$", re.MULTILINE)


def on_env(env: Any, *, config: MkDocsConfig, files: Files) -> Any:
    """Write the Markdown of each page, and the list of them, into the built site."""
    site = Path(config.site_dir)
    texts = {file.src_uri: str(file.page.markdown) for file in files.documentation_pages() if file.page}
    for name, text in texts.items():
        target = site / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    lines = listing(config.site_name, str(config.site_description), config.nav or [], summaries(texts["index.md"]))
    (site / "llms.txt").write_text(lines)
    return env


def summaries(index: str) -> dict[str, str]:
    """Return what the tables of the page of all pages say about each page, by its name."""
    return dict(_ROW.findall(index))


def sections(nav: list[Any]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Return each section of the navigation with the titles and names of its pages; the first one is ``Start``."""
    pairs = [pair for entry in nav for pair in entry.items()]
    yield "Start", [(title, page) for title, page in pairs if isinstance(page, str)]
    for title, pages in pairs:
        if not isinstance(pages, str):
            yield title, [pair for entry in pages for pair in entry.items()]


def listing(name: str, description: str, nav: list[Any], about: dict[str, str]) -> str:
    """Return the text of ``llms.txt``."""
    lines = [f"# {name}", "", f"> {description}"]
    for title, pages in sections(nav):
        lines += ["", f"## {title}", ""]
        lines += [f"- [{page}]({target})" + (f": {about[target]}" if target in about else "") for page, target in pages]
    return "\n".join(lines) + "\n"
