"""Write the tables of keys in docs/configuration.md; with ``--check``, fail if they are not up to date."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from prouter.config import RouterConfig, Section, keys, sections
from prouter.runners.registry import agent_model

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
MODELS: dict[str, type[Section]] = {"router": RouterConfig, "agent": agent_model()}


def main() -> int:
    """Write or check the page and return the exit status."""
    before = PAGE.read_text()
    after = documented(before)
    if "--check" in sys.argv[1:]:
        if before != after:
            print(f"{PAGE} is not up to date: run python tools/document_configuration.py", file=sys.stderr)
        return int(before != after)
    PAGE.write_text(after)
    return 0


def documented(text: str) -> str:
    """Return the page with new tables."""
    for name, model in MODELS.items():
        opening = f"<!-- keys of the {name} -->"
        closing = "<!-- end -->"
        start = text.index(opening)
        end = text.index(closing, start)
        text = "\n".join([text[:start] + opening, "", *_table(model), "", text[end:]])
    return text


def _table(model: type[Section]) -> Iterator[str]:
    purposes, shown = dict(sections(model)), ""
    yield "| key | default | meaning |"
    yield "| --- | --- | --- |"
    for key, field in keys(model):
        section = key.rpartition(".")[0]
        if section != shown and section in purposes:
            yield f"| **{section}** | | **{purposes[section]}** |"
        shown = section
        yield f"| `{key}` | {_shown(field.get_default(call_default_factory=True))} | {field.description} |"


def _shown(default: Any) -> str:
    """Return a default as it is written in a configuration file."""
    shown = default.model_dump(exclude_unset=True) if isinstance(default, BaseModel) else default
    return "" if default is None else f"`{json.dumps(shown)}`"


if __name__ == "__main__":
    raise SystemExit(main())
