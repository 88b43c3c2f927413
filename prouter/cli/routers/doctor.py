"""``prouter doctor``: looks for what is wrong, and says what to do."""

from __future__ import annotations

import json

import click

from prouter.cli.checks.findings import Check
from prouter.cli.checks.machine import machine_checks
from prouter.cli.checks.router import router_checks
from prouter.cli.remote.command import OutputCommand
from prouter.cli.remote.connection import META_KEY, chosen, connect
from prouter.cli.remote.output import coloured, output_kind
from prouter.texts import visible

__all__ = ["command"]

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@click.command("doctor", cls=OutputCommand)
def command() -> None:
    """Look for what is wrong with this machine, the router, the way to it and its agents; say what to do about each.

    It looks at versions, limits and permissions here, and at the router's ports, access, clock, whether what it streams
    arrives piece by piece, and the links of its agents. It changes nothing. The exit code is 1 if it finds an error.

    \b
    Examples:
      prouter doctor
      prouter doctor --url https://router.example.org --token-file my.token -o json
    """
    choice = chosen()
    checks = machine_checks(click.get_current_context().meta.get(META_KEY, {}).get("token_file"))
    with connect(choice=choice) as router:
        checks += router_checks(router, choice)
    kind = output_kind()
    if kind in ("json", "jsonl"):
        told = [{"check": one.name, "level": one.level, "finding": one.text, "do": one.todo} for one in checks]
        click.echo(json.dumps(told, indent=2) if kind == "json" else "\n".join(map(json.dumps, told)))
    else:
        for one in checks:
            _show(one, names_only=kind == "name")
    if any(one.level == "error" for one in checks):
        raise SystemExit(1)


def _show(check: Check, *, names_only: bool) -> None:
    if names_only:
        click.echo(check.name)
        return
    click.echo(
        f"{coloured(check.level.ljust(7), _COLOURS[check.level])}  {check.name.ljust(12)}  {visible(check.text)}"
    )
    if check.todo:
        click.echo(f"{'':7}  {'':12}  -> {visible(check.todo)}")
