"""Retries: a call that breaks every path is given up, and all others are carried out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prouter.fabric.retries import MARKS, SOON, STEP, Retries


class Line:
    """A path that breaks whenever one of the `guilty` calls is sent, and answers others after `patience` seconds."""

    def __init__(self, guilty: set[str], patience: float) -> None:
        self.retries = Retries()
        self.guilty = guilty
        self.patience = patience
        self.now = 0.0
        self.up = False
        self.losses = 0
        self.answers: dict[str, float] = {}
        self.given_up: list[str] = []

    def call(self, call_id: str) -> None:
        if self.retries.add(call_id, self.now, up=self.up):
            self.send([call_id])

    def send(self, calls: list[str]) -> None:
        for call_id in calls:
            if call_id not in self.guilty:
                self.answers.setdefault(call_id, self.now + self.patience)
        if self.guilty & set(calls):
            self.lose()

    def lose(self) -> None:
        self.up = False
        self.losses += 1
        self.answers.clear()
        for call_id in self.retries.path_lost(self.now + 0.01):
            self.given_up.append(call_id)
            self.retries.remove(call_id)

    def step(self) -> None:
        self.now += 0.1
        if not self.up:
            self.up = True
            self.send(self.retries.path_up(self.now))
            return
        for call_id in [call_id for call_id, at in self.answers.items() if at <= self.now]:
            del self.answers[call_id]
            self.retries.remove(call_id)
        deadline = self.retries.deadline
        if deadline is not None:
            self.send(self.retries.due(self.now))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.step()


def test_a_call_that_breaks_every_path_is_given_up_after_six_marks() -> None:
    line = Line({"bad"}, 0.0)
    line.step()
    line.call("bad")
    line.run(5)
    assert (line.given_up, line.losses, line.up) == (["bad"], MARKS, True)


@given(
    innocent=st.integers(0, 300),
    guilty=st.integers(1, 2),
    patience=st.sampled_from([0.0, 0.3, 1.0, 60.0]),
    where=st.integers(0, 300),
)
def test_calls_that_break_paths_are_found_and_no_others_are_given_up(
    innocent: int, guilty: int, patience: float, where: int
) -> None:
    names = [f"good-{number}" for number in range(innocent)]
    bad = [f"bad-{number}" for number in range(guilty)]
    names[min(where, innocent) : min(where, innocent)] = bad
    line = Line(set(bad), patience)
    line.step()
    for name in names:
        line.call(name)
    line.run(60)
    assert sorted(line.given_up) == bad
    assert line.losses <= guilty * (MARKS + 10)
    line.run(60)
    assert line.up


def test_calls_made_while_others_are_tried_wait_and_are_sent() -> None:
    line = Line({"bad"}, 60.0)
    line.step()
    line.call("bad")
    while line.losses < MARKS - 1 or not line.up:
        line.step() if not line.up else line.call(f"new-{line.now:.1f}")
    line.run(10)
    assert line.given_up == ["bad"]


def test_a_path_that_breaks_again_and_again_for_reasons_of_its_own_costs_no_call() -> None:
    line = Line(set(), 60.0)
    for number in range(20):
        line.step()
        line.call(f"call-{number}")
        line.call(f"other-{number}")
        line.now += SOON + STEP
        line.lose()
    assert line.given_up == []


def test_a_path_that_breaks_at_once_whatever_is_sent_costs_no_call() -> None:
    line = Line(set(), 60.0)
    line.step()
    line.call("alone")
    for _ in range(20):
        line.lose()
        line.run(STEP / 2)
    line.run(10)
    assert line.given_up == []
    assert line.answers


def test_a_call_without_a_path_waits_for_one() -> None:
    retries = Retries()
    assert not retries.add("early", 0.0, up=False)
    assert retries.path_up(1.0) == ["early"]
    assert retries.deadline is None
    assert retries.due(10.0) == []


def test_a_call_that_is_answered_twice_is_removed_once() -> None:
    retries = Retries()
    retries.add("call", 0.0, up=True)
    retries.remove("call")
    retries.remove("call")
    assert retries.path_up(1.0) == []


def test_calls_are_tried_alone_at_first_and_new_ones_wait() -> None:
    retries = Retries()
    for call_id in ("a", "b", "c", "d"):
        retries.add(call_id, 0.0, up=True)
    for _ in range(MARKS - 1):
        assert retries.path_lost(0.1) == []
        sent = retries.path_up(0.2)
    assert sent == [], "all may be why the path is lost"
    assert not retries.add("new", 0.3, up=True)
    assert retries.due(0.2 + STEP / 2) == [], "it is not known yet whether the path lives without them"
    assert retries.due(0.2 + STEP) == ["a"]
    assert retries.due(0.3 + STEP) == [], "it may still break the path"
    retries.remove("a")
    assert retries.due(0.3 + STEP) == ["b", "c"], "it was answered"
    assert retries.due(0.3 + 2 * STEP) == ["d", "new"], "the path lives in spite of them"
    assert retries.path_lost(0.4 + 2 * STEP) == [], "more than one was tried: nobody knows which it was"
