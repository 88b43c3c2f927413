"""``prouter token``: makes, lists and revokes access tokens of the HTTP API."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from prouter.access.gate import LOOK_EVERY
from prouter.access.roles import Role
from prouter.access.token_file import TokenFile
from prouter.access.tokens import Token
from prouter.cli.local.audit import write_audit
from prouter.cli.local.options import (
    GroupOptions,
    configuration_options,
    output_options,
    refuse,
    seconds,
)
from prouter.cli.local.table import columns, local_time, print_revoked
from prouter.cli.remote.output import emit, output_kind
from prouter.config import ConfigError, RouterConfig
from prouter.config.directories import access_dir
from prouter.jobs import rfc3339

__all__ = ["command"]

_ROLES = [role.label for role in Role]


def _tokens(config: RouterConfig) -> TokenFile:
    return TokenFile(access_dir(config))


@click.group("token")
@configuration_options
@click.pass_context
def command(
    context: click.Context, file: str | None, sets: tuple[str, ...], log_level: str | None, connection_debug: bool
) -> None:
    """Make, list and revoke access tokens of this router's HTTP API.

    Run these commands with the router's configuration. The router need not be running; one that runs goes by the
    change once the command has ended. From the first token on, every request needs one.

    \b
    Examples:
      prouter token create alice --role admin
      prouter token list
      prouter token revoke ID
    """
    context.obj = GroupOptions(file, sets, log_level)


@command.command("create")
@configuration_options
@click.argument("name", required=False)
@click.option("--name", "option", metavar="NAME", help="The same as NAME.")
@click.option("--role", type=click.Choice(_ROLES), default="user", show_default=True, help="What its holder may do.")
@click.option("--expires", callback=lambda *given: seconds(*given) if given[2] else None, metavar="DURATION",
              help="For how long it is valid, such as 12h or 90d; for ever by default.")  # fmt: skip
@output_options
@click.pass_obj
def create_command(
    options: GroupOptions,
    file: str | None,
    sets: tuple[str, ...],
    log_level: str | None,
    connection_debug: bool,
    name: str | None,
    option: str | None,
    role: str,
    expires: float | None,
) -> None:
    """Make a token and print it. It is stored as a hash: nobody can print it again.

    NAME is its holder's: the owner of the jobs that are created with it. Several tokens may have the same name.

    \b
    Examples:
      prouter token create alice --role admin
      prouter token create ci --role user --expires 90d --json
    """
    try:
        holder = name or option
        if not holder:
            raise ConfigError("NAME is missing: whose token is it? For example: prouter token create alice")
        config = options.config(file, sets)
        tokens = _tokens(config)
        first = tokens.seen() is None
        token, text = tokens.issue(name=holder, role=Role.of(role), now=time.time(), lifetime=expires)
    except ConfigError as error:
        refuse(error)
    write_audit(config, "createToken", 201, token=token.id, name=token.name, role=role)
    if first:
        time.sleep(LOOK_EVERY)  # then all workers of a running router ask for it
    if output_kind() in ("json", "jsonl"):
        click.echo(json.dumps({**_facts(token), "token": text}))
        return
    until = "for ever" if token.expires is None else f"until {local_time(token.expires)}"
    click.echo(f"prouter: token {token.id} lets '{token.name}' in as {role}, {until}; it is shown this once", err=True)
    click.echo(text)


@command.command("list")
@configuration_options
@output_options
@click.pass_obj
def list_command(
    options: GroupOptions,
    file: str | None,
    sets: tuple[str, ...],
    log_level: str | None,
    connection_debug: bool,
) -> None:
    """List the tokens, without their texts.

    \b
    Examples:
      prouter token list
      prouter token list --json
    """
    try:
        tokens = _tokens(options.config(file, sets)).all()
    except ConfigError as error:
        refuse(error)
    emit(tokens, columns(("ID", "NAME", "ROLE", "CREATED", "EXPIRES"), _row), raw=_facts, name=lambda one: one.id)


@command.command("revoke")
@configuration_options
@click.argument("identifier", metavar="ID")
@output_options
@click.pass_obj
def revoke_command(
    options: GroupOptions,
    file: str | None,
    sets: tuple[str, ...],
    log_level: str | None,
    connection_debug: bool,
    identifier: str,
) -> None:
    """Revoke a token.

    Once this command has ended, a running router refuses the token; it ends its open connections within seconds.

    \b
    Examples:
      prouter token revoke 3f9a2c01
      prouter token --config router.yaml revoke 3f9a2c01
    """
    try:
        config = options.config(file, sets)
        revoked = _tokens(config).revoke(identifier)
        write_audit(config, "revokeToken", 204 if revoked else 404, token=identifier)
        if not revoked:
            raise ConfigError(f"there is no token '{identifier}'; 'prouter token list' shows them")
    except ConfigError as error:
        refuse(error)
    time.sleep(LOOK_EVERY)  # the workers of a running router go by what they saw for so long
    print_revoked(identifier)


def _facts(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "role": token.role.label,
        "created": rfc3339(token.created),
        "expires": rfc3339(token.expires) if token.expires is not None else None,
    }


def _row(token: Token) -> tuple[str, ...]:
    until = "never" if token.expires is None else local_time(token.expires)
    if not token.valid(time.time()):
        until += " (expired)"
    return token.id, token.name, token.role.label, local_time(token.created), until
