"""The thread that watches the files of access."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prouter.broker.access import watcher as watcher_module
from prouter.broker.access.gate import Rules
from prouter.broker.access.watcher import AccessWatcher
from prouter.key_pairs import KeyPair
from prouter.keys.files import make_pair, store_pair
from prouter.keys.invitation_book import BOOK, InvitationBook
from prouter.keys.invitations import Bound, Holder, Refused
from prouter.keys.router_keys import begin_rotation

KEY = make_pair().public


class Loop:
    """What the broker's loop does with a watcher."""

    def __init__(self, state: Path, accept_keys: Path | None = None) -> None:
        self.woken = threading.Event()
        self.changes: list[tuple[Rules, KeyPair]] = []
        self.watcher = AccessWatcher(state, accept_keys, encrypts=True, wake=self.woken.set)
        self.watcher.changed = lambda rules, pair, now: self.changes.append((rules, pair))
        self.watcher.start()

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            self.woken.wait(1)
            self.woken.clear()
            for done in self.watcher.take_done():
                done(0.0)


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    monkeypatch.setattr(watcher_module, "_INTERVAL", 0.01)
    monkeypatch.setattr(watcher_module, "_ANNOUNCED", 0.2)
    (tmp_path / "agents").mkdir()
    made = Loop(tmp_path, tmp_path / "agents")
    yield made
    made.watcher.close()


def test_invitations_and_keys_count_as_soon_as_they_are_there(loop: Loop, tmp_path: Path) -> None:
    assert loop.watcher.rules.invitations == ()
    assert loop.watcher.rules.router_keys == (loop.watcher.pair.public,)
    book = InvitationBook(tmp_path / BOOK)
    one = book.issue(name="", uses=1, now=time.time(), lifetime=60)[0]
    loop.until(lambda: bool(loop.changes and loop.changes[-1][0].invitations))
    assert [invitation.id for invitation in loop.changes[-1][0].invitations] == [one.id]
    store_pair(tmp_path / "agents", "gpu", make_pair())
    loop.until(lambda: bool(loop.changes[-1][0].accepted))
    book.revoke(one.id)
    loop.until(lambda: loop.changes[-1][0].invitations == ())


def test_a_holder_is_stored(loop: Loop, tmp_path: Path) -> None:
    book = InvitationBook(tmp_path / BOOK)
    one = book.issue(name="", uses=1, now=time.time(), lifetime=60)[0]
    outcomes: list[Bound | Refused] = []
    loop.watcher.bind(one.id, Holder("gpu", KEY, time.time()), lambda outcome, now: outcomes.append(outcome))
    loop.until(lambda: bool(outcomes))
    assert outcomes == [Bound()]
    assert list(book.all()[0].holders) == ["gpu"]


def test_many_agents_join_at_once(loop: Loop, tmp_path: Path) -> None:
    book = InvitationBook(tmp_path / BOOK)
    one = book.issue(name="", uses=1500, now=time.time(), lifetime=60)[0]
    outcomes: list[Bound | Refused] = []
    for number in range(2000):
        holder = Holder(f"gpu-{number}", KEY, time.time())
        loop.watcher.bind(one.id, holder, lambda outcome, now: outcomes.append(outcome))
    loop.until(lambda: len(outcomes) == 2000)
    assert [isinstance(outcome, Bound) for outcome in outcomes] == [True] * 1500 + [False] * 500
    assert len(book.all()[0].holders) == 1500


def test_invitations_of_a_database_that_was_deleted_are_gone(loop: Loop, tmp_path: Path) -> None:
    InvitationBook(tmp_path / BOOK).issue(name="", uses=1, now=time.time(), lifetime=60)
    loop.until(lambda: bool(loop.changes and loop.changes[-1][0].invitations))
    (tmp_path / BOOK).unlink()
    loop.until(lambda: loop.changes[-1][0].invitations == ())
    fresh = InvitationBook(tmp_path / BOOK).issue(name="", uses=1, now=time.time(), lifetime=60)[0]
    loop.until(lambda: [one.id for one in loop.changes[-1][0].invitations] == [fresh.id])


def test_the_next_key_is_announced_before_it_is_used(loop: Loop, tmp_path: Path) -> None:
    before = loop.watcher.pair
    keys = begin_rotation(tmp_path, 0.0)
    assert keys.next is not None
    loop.until(lambda: len(loop.changes) == 2)
    (announced, still), (alone, used) = loop.changes
    assert (announced.router_keys, still) == ((before.public, keys.next.public), before)
    assert (alone.router_keys, used) == ((keys.next.public,), keys.next)


def test_files_that_cannot_be_read_change_nothing_and_are_logged_once(
    loop: Loop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    book = InvitationBook(tmp_path / BOOK)
    book.issue(name="", uses=1, now=time.time(), lifetime=60)
    loop.until(lambda: bool(loop.changes and loop.changes[-1][0].invitations))
    seen = len(loop.changes)
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"no database" * 1000)
    damaged.replace(tmp_path / BOOK)
    outcomes: list[Bound | Refused] = []
    loop.watcher.bind("cafe", Holder("gpu", KEY, 0.0), lambda outcome, now: outcomes.append(outcome))
    loop.until(lambda: bool(outcomes))
    assert "cannot store" in str(outcomes)
    assert len(loop.changes) == seen
