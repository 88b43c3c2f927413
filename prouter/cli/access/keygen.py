"""``prouter keygen``: makes key pairs, and rotates the router's own."""

from __future__ import annotations

import time
from pathlib import Path

import click

from prouter.cli.local.options import configuration_options, refuse, router_config, seconds
from prouter.config import ConfigError
from prouter.config.directories import make_private, router_state_dir
from prouter.key_pairs import KeyPair
from prouter.keys.files import PUBLIC, SECRET, make_pair, store_pair
from prouter.keys.router_keys import begin_rotation, keys_directory, load_router_keys

__all__ = ["command"]


@click.command("keygen")
@configuration_options
@click.option("--out", type=click.Path(file_okay=False), help="Make a pair in this directory instead of the router's.")
@click.option("--name", help="Name of the files there: NAME.key and NAME.key_secret.")
@click.option("--uid", default="", help="Uid of the only agent that may use the key (server.accept_keys).")
@click.option("--rotate", is_flag=True, help="Give the router a new key. Linked agents learn it before it is used.")
@click.option(
    "--switch-after",
    callback=seconds,
    default="24h",
    show_default=True,
    help="With --rotate: how long agents have to learn the new key. Those that are not linked in that time have to be "
    "invited again.",
)
def command(
    file: str | None,
    sets: tuple[str, ...],
    log_level: str | None,
    connection_debug: bool,
    out: str | None,
    name: str | None,
    uid: str,
    rotate: bool,
    switch_after: float,
) -> None:
    """Make a key pair and print its public key.

    Without --out this is the router's own pair, in its state directory. A pair that is there already is kept and shown.

    \b
    Examples:
      prouter keygen --config router.yaml
      prouter keygen --out keys --name gpu-7 --uid gpu-7
      prouter keygen --rotate --switch-after 7d
    """
    try:
        if out is not None:
            if rotate:
                raise ConfigError("--rotate: it is the router's own key that rotates; leave --out away")
            public = _make(Path(out).expanduser(), name or "prouter", uid)
        elif name is not None or uid:
            raise ConfigError("--name, --uid: they name files of --out; say which directory")
        else:
            state = router_state_dir(router_config(file, sets, log_level))
            public = _rotate(state, switch_after) if rotate else _own(state)
    except ConfigError as error:
        refuse(error)
    click.echo(public)


def _make(directory: Path, name: str, uid: str) -> str:
    """Make a pair by hand, and never write over another one."""
    if not name.strip() or "/" in name or name.startswith(".") or not (name + uid).isprintable():
        raise ConfigError(f"--name: {name!r} is no name for a file")
    if not directory.is_dir():
        make_private(directory)
    secret = directory / f"{name}{SECRET}"
    for path in (secret, directory / f"{name}{PUBLIC}"):
        if path.exists():
            raise ConfigError(f"{path} exists already; choose another --name or --out")
    pair: KeyPair = make_pair()
    store_pair(directory, name, pair, uid)
    click.echo(f"prouter: the pair is in {directory}: {name}{PUBLIC} is public, {name}{SECRET} is secret", err=True)
    return pair.public


def _own(state: Path) -> str:
    keys = load_router_keys(state)
    click.echo(f"prouter: the router's own pair is in {keys_directory(state)}", err=True)
    return keys.current.public


def _rotate(state: Path, switch_after: float) -> str:
    keys = begin_rotation(state, time.time() + switch_after)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(keys.switch_at))
    click.echo(f"prouter: linked agents learn this key now; the router uses it from {when} on", err=True)
    return keys.public[-1]
