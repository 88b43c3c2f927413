"""Write the tables of keys in docs/configuration.md; with ``--check``, fail if they are not up to date."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from prouter.config import RouterConfig, Section, keys, sections
from prouter.runners.registry import agent_model
from tools.generated_page import between, write_or_check

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
MODELS: dict[str, type[Section]] = {"router": RouterConfig, "agent": agent_model()}


def main() -> int:
    """Write or check the page and return the exit status."""
    return write_or_check(PAGE, documented(PAGE.read_text()))


def documented(text: str) -> str:
    """Return the page with new tables."""
    for name, model in MODELS.items():
        text = between(text, f"<!-- keys of the {name} -->", "<!-- end -->", [*_table(model), ""])
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
