"""Write the table of metrics in docs/metrics.md; with ``--check``, fail if it is not up to date."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prouter.web.metrics.exposition import FIGURES
from tools.generated_page import between, write_or_check

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
OPENING, CLOSING = "<!-- figures -->", "<!-- end -->"


def main() -> int:
    """Write or check the page and return the exit status."""
    return write_or_check(PAGE, between(PAGE.read_text(), OPENING, CLOSING, [*_table(), ""]))


def _table() -> Iterator[str]:
    yield "| metric | type | labels | meaning |"
    yield "| --- | --- | --- | --- |"
    for figure in FIGURES:
        yield f"| `{figure.name}` | {figure.kind} | {', '.join(figure.labels)} | {figure.help} |"


if __name__ == "__main__":
    raise SystemExit(main())
