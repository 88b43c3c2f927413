"""``prouter invite`` and ``prouter keygen``: what they print, and what is on disk afterwards."""

from __future__ import annotations

import json
import os
import shlex
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from prouter.cli import main
from prouter.cli.access.invite import _own_name
from prouter.config import ConfigError
from prouter.keys.files import load_certificate, load_pair
from prouter.keys.invitation_book import BOOK, InvitationBook
from prouter.keys.join_url import JoinUrl, parse_join_url
from prouter.keys.router_keys import load_router_keys

REMOTE = ("--set", "server.interface=192.0.2.7")


class Cli:
    """The command line of one router."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "state"
        self._where = ("--set", f"state.dir={self.state}", "--set", f"state.run_dir={directory / 'run'}")

    def run(self, command: str, *arguments: str, fails: bool = False) -> Result:
        result = CliRunner().invoke(main, [*shlex.split(command), *self._where, *arguments])
        assert result.exit_code == (2 if fails else 0), result.output
        return result

    def url(self, *arguments: str) -> JoinUrl:
        """The URL of a new invitation, as a shell gives it to ``prouter agent``."""
        (line,) = self.run("invite", *arguments).stdout.splitlines()
        program, command, option, url = shlex.split(line)
        assert (program, command, option) == ("prouter", "agent", "--join")
        return parse_join_url(url)

    def listed(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.run("invite list", "--json").stdout)
        return found


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def test_an_invitation_is_one_line_with_address_key_and_token(cli: Cli) -> None:
    url = cli.url(*REMOTE)
    assert url.address == "192.0.2.7:8889"
    assert url.keys == (load_router_keys(cli.state).current.public,)
    (listed,) = cli.listed()
    assert (listed["state"], listed["used"], listed["uses"]) == ("open", 0, 1)
    assert url.token.encode() not in (cli.state / BOOK).read_bytes()


def test_a_router_on_loopback_is_joined_without_a_key_unless_it_encrypts(cli: Cli) -> None:
    plain = cli.url()
    assert plain == JoinUrl("127.0.0.1:8889", (), plain.token)
    assert cli.url("--set", "server.curve=True").keys


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("router.example.org", "router.example.org:8889"),
        ("router.example.org:99", "router.example.org:99"),
        ("192.0.2.1:99", "192.0.2.1:99"),
        ("2001:db8::1", "[2001:db8::1]:8889"),
        ("[2001:db8::1]:99", "[2001:db8::1]:99"),
    ],
)
def test_the_host_is_the_one_that_is_given(cli: Cli, host: str, address: str) -> None:
    assert cli.url("--host", host).address == address
    assert "assumed" not in cli.run("invite", "--host", host).stderr


@pytest.mark.parametrize(
    ("addresses", "assumed"), [(["127.0.1.1", "::1"], None), (["127.0.1.1", "192.0.2.9"], "name"), ([], "name")]
)
def test_a_name_that_leads_to_loopback_is_assumed_for_no_other_machine(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str], assumed: str | None
) -> None:
    def known(*_: object) -> list[tuple[Any, ...]]:
        if not addresses:
            raise socket.gaierror
        return [(None, None, None, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", known)
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename="name"))
    if assumed is None:
        with pytest.raises(ConfigError, match="give --host HOST"):
            _own_name()
    else:
        assert _own_name() == assumed


def test_what_is_assumed_is_said(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prouter.cli.access.invite._own_name", lambda: "router.example.org")
    everywhere = cli.run("invite", "--set", "server.interface=0.0.0.0")
    assert "the router's address is assumed to be" in everywhere.stderr
    assert "0.0.0.0" not in everywhere.stdout
    assert "cannot reach it: the router listens on loopback only" in cli.run("invite").stderr
    plain = ("--set", "server.insecure=True", "--set", "server.accept_tokens=['a-long-token']")
    insecure = cli.run("invite", *REMOTE, *plain)
    assert "links are not encrypted" in insecure.stderr
    assert "key=" not in insecure.stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--host", "a/b"), "--host: 'a/b' must be 'host:port'"),
        (("--host", "host:0"), "--host: 'host:0' must be 'host:port'"),
        (("--set", "server.port=0"), "server.port: it is 0, so the port is not known; give --host HOST:PORT"),
        (("--set", "server.enabled=False"), "server.enabled: it is off"),
        (("--name", "two\nlines"), "--name: at most 128 printable characters"),
    ],
)
def test_mistakes_are_named(cli: Cli, arguments: tuple[str, ...], problem: str) -> None:
    assert problem in cli.run("invite", *arguments, fails=True).stderr
    assert not (cli.state / BOOK).exists()


@pytest.mark.parametrize("text", ["soon", "24", "h", "-1h", "1w", "1.5h", ""])
def test_durations_have_a_unit(cli: Cli, text: str) -> None:
    assert "no duration" in cli.run("invite", "--expires", text, fails=True).stderr


def test_uses_expiry_and_name_are_kept(cli: Cli) -> None:
    cli.url("--uses", "3", "--expires", "30m", "--name", "lab")
    cli.url("--many", "--expires", "7d")
    several, many = cli.listed()
    assert (several["uses"], several["name"]) == (3, "lab")
    assert many["uses"] is None
    lifetimes = [one.expires - one.created for one in InvitationBook(cli.state / BOOK).all()]
    assert lifetimes == [1800.0, 7 * 86400.0]


def test_invitations_are_listed_with_the_agents_that_hold_them(cli: Cli) -> None:
    one = json.loads(cli.run("invite", "--json", *REMOTE).stdout)
    assert parse_join_url(one["url"]).address == "192.0.2.7:8889"
    book = InvitationBook(cli.state / BOOK)
    many = book.issue(name="", uses=None, now=time.time(), lifetime=60)[0]
    for number in range(5):
        book.bind(many.id, f"gpu-{number}", "", time.time())
    text = cli.run("invite list").stdout
    assert text.splitlines()[0].split() == ["ID", "STATE", "USED", "EXPIRES", "NAME", "AGENTS"]
    assert "5 of any" in text
    assert "gpu-0, gpu-1, gpu-2, and 2 more" in text
    assert [agent["uid"] for agent in cli.listed()[1]["agents"]] == [f"gpu-{number}" for number in range(5)]


def test_a_revoked_invitation_is_gone(cli: Cli) -> None:
    cli.url()
    identifier = cli.listed()[0]["id"]
    assert cli.run("invite revoke", identifier).stdout == f"revoked {identifier}\n"
    assert cli.listed() == []
    again = cli.run("invite revoke", identifier, fails=True)
    assert f"there is no invitation '{identifier}'; 'prouter invite list' shows them" in again.stderr


def test_options_before_a_subcommand_count_for_it(tmp_path: Path, cli: Cli) -> None:
    cli.url()
    config = tmp_path / "router.yaml"
    config.write_text(f"state: {{dir: {cli.state}, run_dir: {tmp_path / 'run'}}}\n")
    result = CliRunner().invoke(main, ["invite", "--config", str(config), "list", "--json"])
    assert len(json.loads(result.stdout)) == 1


def test_keygen_shows_the_routers_key_and_makes_it_once(cli: Cli) -> None:
    first = cli.run("keygen").stdout
    assert cli.run("keygen").stdout == first == f"{load_router_keys(cli.state).current.public}\n"


def test_keygen_rotates_the_routers_key(cli: Cli) -> None:
    before = cli.run("keygen").stdout.strip()
    result = cli.run("keygen --rotate --switch-after 1h")
    keys = load_router_keys(cli.state)
    assert keys.public == (before, result.stdout.strip())
    assert keys.switch_at == pytest.approx(time.time() + 3600, abs=60)
    assert "the router uses it from" in result.stderr
    assert cli.url(*REMOTE).keys == keys.public, "who joins during a rotation knows both"
    assert "a rotation is under way" in cli.run("keygen --rotate", fails=True).stderr


def test_keygen_makes_pairs_by_hand_and_never_replaces_one(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "pairs"
    arguments = ("--out", str(out), "--name", "gpu-7", "--uid", "gpu-7")
    result = cli.run("keygen", *arguments)
    pair = load_pair(out / "gpu-7.key_secret")
    assert result.stdout == f"{pair.public}\n"
    assert pair.secret not in result.output
    assert load_certificate(out / "gpu-7.key").uid == "gpu-7"
    assert "exists already; choose another --name" in cli.run("keygen", *arguments, fails=True).stderr
    assert load_pair(out / "gpu-7.key_secret") == pair


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--name", "x"), "--name, --uid: they name files of --out"),
        (("--out", "OUT", "--rotate"), "it is the router's own key that rotates"),
        (("--out", "OUT", "--name", "../x"), "is no name for a file"),
        (("--out", "OUT", "--name", "x", "--uid", "a\nb"), "is no name for a file"),
    ],
)
def test_keygen_names_mistakes(cli: Cli, tmp_path: Path, arguments: tuple[str, ...], problem: str) -> None:
    given = [str(tmp_path / "out") if argument == "OUT" else argument for argument in arguments]
    assert problem in cli.run("keygen", *given, fails=True).stderr
