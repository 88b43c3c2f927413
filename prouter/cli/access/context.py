"""``prouter context``: several routers by name, with their tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from prouter.cli.remote import contexts
from prouter.cli.remote.command import LocalGroup
from prouter.cli.remote.completion import complete_contexts
from prouter.cli.remote.connection import check_url, read_token
from prouter.cli.remote.contexts import Context, Contexts
from prouter.cli.remote.exits import Exit
from prouter.cli.remote.failures import Failure, note
from prouter.cli.remote.output import Column, emit

__all__ = ["command"]


@dataclass(frozen=True)
class _Row:
    name: str
    context: Context
    current: bool

    @property
    def raw(self) -> dict[str, object]:
        """What JSON shows: never the token."""
        token = self.context.token is not None
        return {
            "name": self.name,
            "url": self.context.url,
            "token": token,
            "ca": self.context.ca,
            "current": self.current,
        }


_COLUMNS: list[Column[_Row]] = [
    Column("NAME", lambda row: row.name),
    Column("CURRENT", lambda row: "*" if row.current else ""),
    Column("URL", lambda row: row.context.url),
    Column("TOKEN", lambda row: "yes" if row.context.token else "no"),
]


def _emit(known: Contexts, names: list[str]) -> None:
    rows = [_Row(name, known.known[name], name == known.current) for name in names]
    emit(rows, _COLUMNS, raw=lambda row: row.raw, name=lambda row: row.name)


@click.group("context", cls=LocalGroup)
def command() -> None:
    """Store routers with their tokens, and choose the one that commands use.

    They are in ~/.config/prouter/contexts.yaml, which only you can read. Options (--url, --token-file, --context) and
    the variables PROUTER_URL, PROUTER_TOKEN and PROUTER_CONTEXT go before the current context.

    \b
    Examples:
      prouter context add lab --url https://router.example.org --token-file lab.token
      prouter context use lab
      prouter context list
    """


@command.command("add")
@click.argument("name")
@click.option("--url", required=True, metavar="URL", help="The router.")
@click.option("--token-file", metavar="FILE", help="File with the access token, - for stdin or to be asked for it.")
@click.option("--ca-file", metavar="FILE", type=click.Path(exists=True, dir_okay=False), help="File of the authority "
              "that signed the router's certificate, if it is not a well-known one.")  # fmt: skip
@click.option("--use", is_flag=True, help="Use it from now on; the first context is used anyway.")
def add_command(name: str, url: str, token_file: str | None, ca_file: str | None, use: bool) -> None:
    """Store a router under a name; one of the same name is replaced.

    \b
    Examples:
      prouter context add lab --url https://router.example.org --token-file lab.token
      pass show lab | prouter context add lab --url https://router.example.org --token-file - --use
    """
    contexts.check_name(name)
    url = check_url(url)
    token = read_token(token_file) if token_file else None
    ca = str(Path(ca_file).absolute()) if ca_file else None
    if token is not None and url.startswith("http://") and not _is_here(url):
        note(f"the token crosses the network in clear text: {url} is not https")
    with contexts.changed() as known:
        known.known[name] = Context(url, token, ca)
        if use or known.current is None:
            known.current = name
    _emit(known, [name])


def _is_here(url: str) -> bool:
    host = url.partition("://")[2].partition("/")[0]
    return host.startswith(("127.", "localhost", "[::1]"))


@command.command("use")
@click.argument("name", shell_complete=complete_contexts)
def use_command(name: str) -> None:
    """Have commands use this router from now on.

    \b
    Examples:
      prouter context use lab
      prouter context use home -o json
    """
    with contexts.changed() as known:
        known.get(name)
        known.current = name
    _emit(known, [name])


@command.command("list")
def list_command() -> None:
    """List the routers, without their tokens.

    \b
    Examples:
      prouter context list
      prouter context list -o name
    """
    known = contexts.load()
    _emit(known, sorted(known.known))


@command.command("rm")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_contexts)
def rm_command(names: tuple[str, ...]) -> None:
    """Forget routers and their tokens. The tokens stay valid: 'prouter token revoke' ends them.

    \b
    Examples:
      prouter context rm lab
      prouter context rm lab home
    """
    with contexts.changed() as known:
        missing = [name for name in names if name not in known.known]
        if missing:
            raise Failure(f"there is no context '{missing[0]}'; 'prouter context list' shows them", Exit.NOT_FOUND)
        removed = Contexts(known.current, {name: known.known[name] for name in names})
        for name in dict.fromkeys(names):
            del known.known[name]
        known.current = known.current if known.current in known.known else None
    _emit(Contexts(None, removed.known), list(dict.fromkeys(names)))
