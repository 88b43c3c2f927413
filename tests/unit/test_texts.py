"""Texts of others cannot control a terminal, a log or a table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.cli.local.table import columns
from prouter.cli.remote.output import emit
from prouter.errors import InvalidRequest
from prouter.requests import CreateRequest, validated
from prouter.texts import visible, without_credentials

BIDI = ["\u202a", "\u202b", "\u202c", "\u202d", "\u202e", "\u2066", "\u2067", "\u2068", "\u2069"]
CONTROLS = ["\0", "\n", "\r", "\x1b", "\x7f", "\x85", "\x9b", "\u2028", "\u2029"]


@given(st.text())
def test_what_is_visible_can_be_printed_and_nothing_else_changes(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    assert shown == text or not text.isprintable()


def test_a_table_shows_what_would_control_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("a\x1b[2Jb", "x"), ("\u202egpj.exe", "y"), ("Zoë 💥", "z")]
    shown = columns(("NAME", "STATE"), lambda row: row)
    emit(rows, shown, raw=lambda row: {"name": row[0]}, name=lambda row: row[0], kind="table")
    assert capsys.readouterr().out == (
        "NAME           STATE\na\\x1b[2Jb      x\n\\u202egpj.exe  y\nZoë 💥          z\n"
    )


@pytest.mark.parametrize("character", [*BIDI, *CONTROLS])
def test_no_job_is_called_so(character: str) -> None:
    with pytest.raises(InvalidRequest, match=r"name: must not hold control characters"):
        validated(CreateRequest, {"name": f"a{character}b", "agent": {"type": "any"}})


@pytest.mark.parametrize("name", ["Zoë", "שלום עולם", "مرحبا", "a\u200db", "👩\u200d🔬", "\u200fא", "a b"])
def test_a_job_may_have_a_name_in_any_script(name: str) -> None:
    assert validated(CreateRequest, {"name": name, "agent": {"type": "any"}}).name == name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/info/prt_abcdefghijklmnop?x", "/info/prt_***?x"),
        ("there is no token 'pri_-bcdefghijklmno_'", "there is no token 'pri_***'"),
        ("/jobs/c/j/shared/eyJhbGciOiJI.eyJzaGFyZSI6.c2lnbmF0dXJl/x", "/jobs/c/j/shared/eyJ***/x"),
        ("shr_0123456789abcdef and prt_0123456789abcdef", "shr_*** and prt_***"),
        ("prt_short my_eyJ eyJhbGci.eyJz", "prt_short my_eyJ eyJhbGci.eyJz"),
        ("tokens_created=5", "tokens_created=5"),
    ],
)
def test_credentials_are_masked(text: str, shown: str) -> None:
    assert without_credentials(text) == shown
