"""The options that choose a router: ``--url``, ``--token-file`` and ``--context``."""

from __future__ import annotations

from typing import Any

import click

from prouter.cli.remote.completion import complete_contexts
from prouter.cli.remote.connection import META_KEY

__all__ = ["router_options"]


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    context.meta.setdefault(META_KEY, {})[parameter.name] = value
    return value


def router_options() -> list[click.Parameter]:
    """Return ``--url``, ``--token-file`` and ``--context``, which `connect` goes by."""
    common: dict[str, Any] = {"expose_value": False, "callback": _keep}
    return [
        click.Option(["--url"], metavar="URL", help="The router [default: PROUTER_URL, or the context's].", **common),
        click.Option(
            ["--token-file"],
            metavar="FILE",
            help="File with the access token, - for stdin [default: PROUTER_TOKEN, or the context's].",
            **common,
        ),
        click.Option(
            ["--context"],
            metavar="NAME",
            help="Router that 'prouter context add' stored [default: PROUTER_CONTEXT, or the current one].",
            shell_complete=complete_contexts,
            **common,
        ),
    ]
