"""Templates in a job's arguments and variables, filled with its address and its place (see docs/jobs.md)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

__all__ = ["fill", "fill_all"]

_TOKEN = re.compile(r"\{(?:port|socket|base_url|base_path|sandbox)\}")


def fill(text: str, tokens: Mapping[str, str]) -> str:
    """Replace ``{port}``, ``{socket}``, ``{base_url}``, ``{base_path}``, ``{sandbox}`` by what `tokens` has for them.

    A token without a value and all other braces stay as they are, so that JSON passes.
    """
    if "{" not in text:
        return text
    return _TOKEN.sub(lambda match: tokens.get(match[0], match[0]), text)


def fill_all(texts: Iterable[str], tokens: Mapping[str, str]) -> list[str]:
    """`fill` for each of several texts."""
    return [fill(text, tokens) for text in texts]
