"""MkDocs hook: pages of the site that lie beside ``docs/``, and links to files that are not pages.

GitHub shows README.md, CHANGELOG.md and their like in the repository's root. The site has them as pages of its own, so
their links, and links to them, are rewritten. A link to any other file of the repository becomes plain text.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

PAGES = {
    "README.md": "getting-started.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
}
"""Files in the repository's root, and their names among the pages of the site."""

_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s:]+)\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that lie beside ``docs/``."""
    for source, name in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Rewrite links between pages in ``docs/`` and files outside it."""
    source = next((source for source, name in PAGES.items() if name == page.file.src_uri), f"docs/{page.file.src_uri}")
    return _LINK.sub(lambda link: _rewritten(link, PurePosixPath(source), page.file.src_uri), markdown)


def _rewritten(link: re.Match[str], source: PurePosixPath, page: str) -> str:
    """Return a link of the file ``source`` as it has to read in ``page``."""
    target, mark, anchor = link[2].partition("#")
    if not target:
        return link[0]
    path = normpath(str(source.parent / target))
    if path in PAGES:
        name = PAGES[path]
    elif path.startswith("docs/"):
        name = path.removeprefix("docs/")
    else:
        return link[1] if (ROOT / path).exists() else link[0]
    up = "../" * page.count("/")
    return f"[{link[1]}]({up}{name}{mark}{anchor})"
