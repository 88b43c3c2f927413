"""``prouter invite``: makes, lists and revokes invitations, with which agents on other machines link."""

from __future__ import annotations

import json
import os
import shlex
import socket
import time
from contextlib import suppress
from typing import Any

import click

from prouter.addresses import split_address
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
from prouter.config import ConfigError, RouterConfig, is_loopback, uses_curve
from prouter.config.directories import router_state_dir
from prouter.keys.invitation_book import BOOK, InvitationBook
from prouter.keys.invitations import Invitation
from prouter.keys.join_url import JoinUrl, format_join_url
from prouter.keys.router_keys import load_router_keys

__all__ = ["command"]

_ANYWHERE = ("0.0.0.0", "::", "*", "")  # noqa: S104 - compared with, not bound


def _book(config: RouterConfig) -> InvitationBook:
    return InvitationBook(router_state_dir(config) / BOOK)


@click.group("invite", invoke_without_command=True)
@configuration_options
@click.option("--host", help="HOST or HOST:PORT by which agents reach this router.")
@click.option("--uses", type=click.IntRange(min=1), default=1, show_default=True, help="How many agents may use it.")
@click.option("--many", is_flag=True, help="Any number of agents may use it.")
@click.option(
    "--expires", callback=seconds, default="24h", show_default=True, help="For how long agents may first use it."
)
@click.option("--name", default="", help="What it is for; shown by 'prouter invite list'.")
@output_options
@click.pass_context
def command(
    context: click.Context,
    file: str | None,
    sets: tuple[str, ...],
    log_level: str | None,
    connection_debug: bool,
    host: str | None,
    uses: int,
    many: bool,
    expires: float,
    name: str,
) -> None:
    """Print the one line that links an agent on another machine to this router.

    The line holds a token: whoever has it can link an agent until the invitation is used up or expires. Run this
    command with the router's configuration; the router need not be running.

    \b
    Examples:
      prouter invite --host router.example.org
      prouter invite --config router.yaml --uses 20 --expires 7d --name lab
      prouter invite revoke ID
    """
    options = context.obj = GroupOptions(file, sets, log_level)
    if context.invoked_subcommand is not None:
        return
    try:
        if not name.isprintable() or len(name) > 128:
            raise ConfigError("--name: at most 128 printable characters are expected")
        config = options.config(None, ())
        address = _address(config, host)
        keys = load_router_keys(router_state_dir(config)).public if uses_curve(config.server) else ()
        if not keys and not is_loopback(config.server.interface):
            _note("links are not encrypted (server.insecure): the token and all traffic can be read on the way")
        invitation, token = _book(config).issue(
            name=name, uses=None if many else uses, now=time.time(), lifetime=expires
        )
    except ConfigError as error:
        refuse(error)
    write_audit(config, "createInvitation", 201, invitation=invitation.id, name=name, uses=invitation.uses)
    url = format_join_url(JoinUrl(address, keys, token))
    line = f"prouter agent --join {shlex.quote(url)}"
    if output_kind() in ("json", "jsonl"):
        click.echo(json.dumps({**_facts(invitation), "url": url, "command": line}))
        return
    agents = "any number of agents" if many else "1 agent" if uses == 1 else f"{uses} agents"
    _note(f"invitation {invitation.id} is for {agents}, until {local_time(invitation.expires)}")
    click.echo(line)


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
    """List invitations and the agents that used them.

    \b
    Examples:
      prouter invite list
      prouter invite list --json
    """
    try:
        invitations = _book(options.config(file, sets)).all()
    except ConfigError as error:
        refuse(error)
    titles = ("ID", "STATE", "USED", "EXPIRES", "NAME", "AGENTS")
    emit(invitations, columns(titles, _row), raw=_facts, name=lambda one: one.id)


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
    """Revoke an invitation.

    Agents that used it lose their links within a second, and are refused from then on.

    \b
    Examples:
      prouter invite revoke 3f9a2c
      prouter invite --config router.yaml revoke 3f9a2c
    """
    try:
        config = options.config(file, sets)
        revoked = _book(config).revoke(identifier)
        write_audit(config, "revokeInvitation", 204 if revoked else 404, invitation=identifier)
        if not revoked:
            raise ConfigError(f"there is no invitation '{identifier}'; 'prouter invite list' shows them")
    except ConfigError as error:
        refuse(error)
    print_revoked(identifier)


def _address(config: RouterConfig, host: str | None) -> str:
    """Where agents reach the router, as far as this machine can tell; says what it assumes."""
    server = config.server
    if not server.enabled:
        raise ConfigError("server.enabled: it is off, so no agent can link; switch it on")
    try:
        if host is not None and _has_port(host):
            split_address(host)
            return host
        if not server.port:
            raise ConfigError("server.port: it is 0, so the port is not known; give --host HOST:PORT")
        address = f"{_bracketed(host or _assumed(server.interface))}:{server.port}"
        split_address(address)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"--host: {host!r} {error}") from None
    if host is None:
        _note(f"the router's address is assumed to be {address}; --host says otherwise")
        if is_loopback(server.interface):
            _note("agents on other machines cannot reach it: the router listens on loopback only (server.interface)")
    return address


def _has_port(host: str) -> bool:
    """Whether HOST ends in a port; an IPv6 address has colons of its own."""
    bare, _, port = host.rpartition(":")
    return bool(bare) and port.isdigit() and (bare.count(":") == 0 or bare.endswith("]"))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _assumed(interface: str) -> str:
    """The interface's address if it has one, else the address by which this machine reaches others.

    Raises:
        ConfigError: there is none.
    """
    if interface not in _ANYWHERE:
        return interface
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((elsewhere, 9))  # Sends nothing: it asks the routing table.
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return _own_name()


def _own_name() -> str:
    """The machine's name, unless it leads to this machine only, as Debian's /etc/hosts has it."""
    name = os.uname().nodename
    with suppress(OSError):
        if all(is_loopback(str(found[4][0])) for found in socket.getaddrinfo(name, None)):
            raise ConfigError(
                f"--host: how agents reach this machine is not known: it has no default route, and its name '{name}' "
                "is known here as a loopback address; give --host HOST"
            )
    return name


def _note(text: str) -> None:
    click.echo(f"prouter: {text}", err=True)


def _facts(invitation: Invitation) -> dict[str, Any]:
    return {
        "id": invitation.id,
        "name": invitation.name,
        "state": invitation.state(time.time()),
        "uses": invitation.uses,
        "used": len(invitation.holders),
        "created": _utc(invitation.created),
        "expires": _utc(invitation.expires),
        "agents": [
            {"uid": holder.uid, "public_key": holder.public_key or None, "since": _utc(holder.since)}
            for holder in invitation.holders.values()
        ],
    }


def _row(invitation: Invitation) -> tuple[str, ...]:
    uses = "any" if invitation.uses is None else str(invitation.uses)
    used = f"{len(invitation.holders)} of {uses}"
    shown = list(invitation.holders)[:3]
    more = [f"and {len(invitation.holders) - len(shown)} more"] if len(invitation.holders) > len(shown) else []
    state = invitation.state(time.time())
    return (
        invitation.id,
        state,
        used,
        local_time(invitation.expires),
        invitation.name or "-",
        ", ".join([*shown, *more]) or "-",
    )


def _utc(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))
