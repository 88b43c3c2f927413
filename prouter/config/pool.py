"""The key ``jobs.pool``: templates of jobs by name, validated with errors that name the wrong key."""

from __future__ import annotations

import re
from typing import Any

from prouter.errors import InvalidRequest
from prouter.jobs import TEMPLATE_NAME
from prouter.requests import validated
from prouter.template_requests import Template

__all__ = ["templates_of"]

_MOST = 64
"""Templates of one agent, at most; routers take no more."""


def templates_of(value: dict[Any, Any]) -> dict[str, Template]:
    """Return the templates by name.

    Raises:
        ValueError: a name or a template is malformed; the text says what is wrong with it.
    """
    if len(value) > _MOST:
        raise ValueError(f"at most {_MOST} templates are expected")
    return {_name(name): _template(name, body) for name, body in value.items()}


def _name(name: Any) -> str:
    if not isinstance(name, str) or not re.fullmatch(TEMPLATE_NAME, name):
        raise ValueError(f"{name!r}: a template's name has 1 to 64 letters, digits and . _ -, a letter or digit first")
    return name


def _template(name: Any, body: Any) -> Template:
    if isinstance(body, Template):
        return body
    try:
        return validated(Template, body)
    except InvalidRequest as error:
        raise ValueError(f"{name}: {error.detail.removeprefix('Invalid request: ')}") from None
