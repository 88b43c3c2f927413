"""Contexts: who may read them, and which router and token a command uses."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from prouter.cli import main
from prouter.cli.remote import contexts
from prouter.cli.remote.connection import chosen
from prouter.cli.remote.contexts import Context
from prouter.cli.remote.failures import Failure

LAB, HOME = "https://lab.example.org", "http://127.0.0.1:9000"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("PROUTER_URL", "PROUTER_TOKEN", "PROUTER_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "prouter"


def run(*arguments: str, stdin: str | None = None) -> str:
    result = CliRunner().invoke(main, ["context", *arguments], input=stdin)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_stored_for_its_owner_alone_and_shown_to_nobody(home: Path) -> None:
    home.mkdir(parents=True, mode=0o755)
    shown = run("add", "lab", "--url", LAB + "/", "--token-file", "-", stdin="prt_secret\n")
    shown += run("list", "-o", "json") + run("list")
    assert "prt_secret" not in shown
    assert mode(home) == 0o700
    assert mode(home / "contexts.yaml") == 0o600
    assert contexts.load().get("lab") == Context(LAB, "prt_secret")
    assert [path.name for path in home.iterdir()] == ["contexts.yaml"]


def test_a_file_that_others_can_read_is_refused(home: Path) -> None:
    run("add", "lab", "--url", LAB)
    (home / "contexts.yaml").chmod(0o640)
    result = CliRunner().invoke(main, ["context", "list"])
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert "chmod 600" in line


def test_add_use_list_and_rm() -> None:
    run("add", "lab", "--url", LAB)
    run("add", "home", "--url", HOME)
    assert [one["current"] for one in json.loads(run("list", "-o", "json"))] == [False, True]
    run("use", "home")
    assert run("list", "-o", "name") == "home\nlab\n"
    assert chosen({}).url == HOME
    run("rm", "home")
    assert chosen({}).url == "http://127.0.0.1:8888"
    assert CliRunner().invoke(main, ["context", "use", "home"]).exit_code == 3


@pytest.mark.parametrize("url", ["ftp://x", "lab", "https://user:prt_secret@lab.example.org"])
def test_what_is_no_url_is_refused(url: str, home: Path) -> None:
    result = CliRunner().invoke(main, ["context", "add", "lab", "--url", url])
    assert result.exit_code == 2
    assert "prt_secret" not in result.stderr
    assert not (home / "contexts.yaml").exists()


@pytest.mark.parametrize(
    "content", ["[1, 2]", "contexts: {lab: {}}", "contexts: 7", "a: [", "!!python/object:os.system"]
)
def test_a_damaged_file_is_named_in_one_line(content: str, home: Path) -> None:
    home.mkdir(parents=True)
    (home / "contexts.yaml").write_text(content)
    (home / "contexts.yaml").chmod(0o600)
    with pytest.raises(Failure, match="is damaged"):
        contexts.load()


def test_what_goes_before_what(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("prt_file\n")
    with contexts.changed() as known:
        known.known = {"lab": Context(LAB, "prt_lab"), "bare": Context(HOME)}
        known.current = "lab"
    assert (chosen({}).url, chosen({}).token) == (LAB, "prt_lab")
    monkeypatch.setenv("PROUTER_TOKEN", "prt_variable")
    assert chosen({}).token == "prt_variable"
    assert chosen({"context": "lab"}).token == "prt_lab"
    assert chosen({"context": "bare"}).token is None
    assert chosen({"context": "bare", "token_file": str(token)}).token == "prt_file"
    monkeypatch.setenv("PROUTER_URL", "http://127.0.0.1:7777")
    assert (chosen({}).url, chosen({}).token) == ("http://127.0.0.1:7777", "prt_variable")
    assert chosen({"url": "http://127.0.0.1:7777/"}).token == "prt_variable"
    assert chosen({"url": "http://evil.example.org"}).token is None
    with pytest.raises(Failure, match="exclude"):
        chosen({"url": HOME, "context": "lab"})


@pytest.mark.parametrize("content", ["", "\n", "two words", "a\nb", "prt_\x1b[0m", "ünsafe"])
def test_a_file_without_a_token_is_refused_and_not_shown(content: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    with pytest.raises(Failure, match="holds no token") as caught:
        chosen({"token_file": str(file)})
    assert not content.strip() or content not in str(caught.value)
