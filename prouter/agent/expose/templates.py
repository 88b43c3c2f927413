"""Templates in a job's arguments and variables, for its address, prefix and sandbox (docs/jobs.md)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

__all__ = ["fill", "fill_all"]

_TOKEN = re.compile(r"\{(?:port|socket|base_url|base_path|sandbox)\}")


def fill(text: str, tokens: Mapping[str, str]) -> str:
    """Replace ``{port}``, ``{socket}``, ``{base_url}``, ``{base_path}``, ``{sandbox}`` by their values in `tokens`.

    Templates without a value, and all other braces, stay as they are, so that JSON passes.
    """
    if "{" not in text:
        return text
    return _TOKEN.sub(lambda match: tokens.get(match[0], match[0]), text)


def fill_all(texts: Iterable[str], tokens: Mapping[str, str]) -> list[str]:
    """Apply `fill` to several texts."""
    return [fill(text, tokens) for text in texts]
