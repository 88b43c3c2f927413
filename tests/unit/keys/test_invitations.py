"""Invitations: who may use a token, until when, and what two processes see of the database."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from prouter.config import ConfigError
from prouter.keys.files import make_pair
from prouter.keys.invitation_book import BOOK, InvitationBook
from prouter.keys.invitations import Bound, Invitation, Refused, Usable, hash_of, is_invitation

ONE, OTHER = (make_pair().public for _ in range(2))
NOW, DAY = 1_000_000.0, 86_400.0


@pytest.fixture
def book(tmp_path: Path) -> InvitationBook:
    return InvitationBook(tmp_path / BOOK)


def invite(book: InvitationBook, uses: int | None = 1, lifetime: float = DAY) -> Invitation:
    return book.issue(name="", uses=uses, now=NOW, lifetime=lifetime)[0]


def reason(outcome: object) -> str:
    assert isinstance(outcome, Refused), outcome
    return outcome.reason


def test_a_single_use_invitation_belongs_to_the_first_agent(book: InvitationBook) -> None:
    one = invite(book)
    assert book.bind(one.id, "gpu-1", ONE, NOW) == Bound()
    assert book.bind(one.id, "gpu-1", ONE, NOW + 100 * DAY) == Bound(), "expiry limits the first use alone"
    assert "was used by agent 'gpu-1'" in reason(book.bind(one.id, "gpu-2", OTHER, NOW))
    assert "was used by agent 'gpu-1'" in reason(book.bind(one.id, "gpu-2", ONE, NOW))
    assert "another key of agent 'gpu-1'" in reason(book.bind(one.id, "gpu-1", OTHER, NOW))
    assert "another key of agent 'gpu-1'" in reason(book.bind(one.id, "gpu-1", "", NOW))
    (listed,) = book.all()
    assert (listed.state(NOW), list(listed.holders)) == ("used", ["gpu-1"])


def test_an_invitation_for_several_agents_counts_them(book: InvitationBook) -> None:
    one, many = invite(book, uses=2), invite(book, uses=None)
    for uid in ("a", "b", "a"):
        assert book.bind(one.id, uid, ONE, NOW) == Bound()
    assert "was used by 2 agents" in reason(book.bind(one.id, "c", ONE, NOW))
    for number in range(50):
        assert book.bind(many.id, f"agent-{number}", ONE, NOW) == Bound()
    assert [invitation.state(NOW) for invitation in book.all() if invitation.uses is None] == ["open"]


def test_an_invitation_expires_for_new_agents(book: InvitationBook) -> None:
    many = invite(book, uses=None)
    assert book.bind(many.id, "early", ONE, NOW + DAY - 1) == Bound()
    assert "expired at 1970-01-13 13:46:40 UTC" in reason(book.bind(many.id, "late", ONE, NOW + DAY))
    assert book.all()[0].state(NOW + DAY) == "expired"


def test_an_agent_that_came_without_a_key_may_get_one(book: InvitationBook) -> None:
    one = invite(book)
    assert book.bind(one.id, "gpu-1", "", NOW) == Bound()
    assert book.bind(one.id, "gpu-1", ONE, NOW) == Bound()
    assert "another key" in reason(book.bind(one.id, "gpu-1", OTHER, NOW))


def test_a_revoked_invitation_is_gone(book: InvitationBook) -> None:
    one = invite(book)
    book.bind(one.id, "gpu-1", ONE, NOW)
    assert book.revoke(one.id)
    assert not book.revoke(one.id)
    assert book.all() == []
    assert "was revoked" in reason(book.bind(one.id, "gpu-1", ONE, NOW))


def test_neither_the_token_nor_a_readable_file_is_on_disk(tmp_path: Path, book: InvitationBook) -> None:
    invitation, token = book.issue(name="lab", uses=1, now=NOW, lifetime=DAY)
    assert is_invitation(token)
    assert len(token) > 40
    assert invitation.token_hash == hash_of(token)
    assert token.encode() not in (tmp_path / BOOK).read_bytes()
    assert (tmp_path / BOOK).stat().st_mode & 0o777 == 0o600


def test_another_process_sees_what_changed(tmp_path: Path, book: InvitationBook) -> None:
    other = InvitationBook(tmp_path / BOOK)
    seen = other.version()
    assert other.version() == seen
    one = invite(book)
    assert other.version() != seen
    seen = other.version()
    other.bind(one.id, "gpu-1", ONE, NOW)
    assert other.version() == seen, "its own changes are none"
    assert book.all() == other.all()


def test_invitations_that_expired_unused_are_forgotten_in_the_end(book: InvitationBook) -> None:
    used, unused = invite(book), invite(book)
    book.bind(used.id, "gpu-1", ONE, NOW)
    later = book.issue(name="", uses=1, now=NOW + 32 * DAY, lifetime=DAY)[0]
    assert {one.id for one in book.all()} == {used.id, later.id}
    assert unused.id not in {one.id for one in book.all()}


def test_a_database_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / BOOK).write_bytes(b"no database, but long enough to look at" * 100)
    with pytest.raises(ConfigError, match=r"invitations\.sqlite cannot be used: file is not a database"):
        InvitationBook(tmp_path / BOOK)
    with pytest.raises(ConfigError, match="cannot be used: No such file"):
        InvitationBook(tmp_path / "missing" / BOOK)


def test_a_database_of_a_later_version_is_left_alone(tmp_path: Path, book: InvitationBook) -> None:
    book.close()
    with sqlite3.connect(tmp_path / BOOK) as database:
        database.execute("PRAGMA user_version = 9")
    with pytest.raises(ConfigError, match="later version of prouter"):
        InvitationBook(tmp_path / BOOK)


def test_usable_tells_who_would_hold_the_invitation(book: InvitationBook) -> None:
    verdict = invite(book).check("gpu-1", ONE, NOW)
    assert isinstance(verdict, Usable)
    assert (verdict.holder.uid, verdict.holder.public_key, verdict.holder.since) == ("gpu-1", ONE, NOW)
