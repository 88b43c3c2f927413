"""Write the table of metrics in docs/metrics.md; with ``--check``, fail if it is not up to date."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from prouter.web.metrics.exposition import FIGURES

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
OPENING, CLOSING = "<!-- figures -->", "<!-- end -->"


def main() -> int:
    """Write or check the page and return the exit status."""
    before = PAGE.read_text()
    start = before.index(OPENING)
    after = "\n".join([before[:start] + OPENING, "", *_table(), "", before[before.index(CLOSING, start) :]])
    if "--check" in sys.argv[1:]:
        if before != after:
            print(f"{PAGE} is not up to date: run python tools/document_metrics.py", file=sys.stderr)
        return int(before != after)
    PAGE.write_text(after)
    return 0


def _table() -> Iterator[str]:
    yield "| metric | type | labels | meaning |"
    yield "| --- | --- | --- | --- |"
    for figure in FIGURES:
        yield f"| `{figure.name}` | {figure.kind} | {', '.join(figure.labels)} | {figure.help} |"


if __name__ == "__main__":
    raise SystemExit(main())
