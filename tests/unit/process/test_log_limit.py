"""A flood of events does not fill the log."""

from __future__ import annotations

from prouter.process.log_limit import LogLimit


def test_ten_events_of_a_second_are_logged_and_those_of_the_next_again() -> None:
    limit = LogLimit()
    assert [limit.allows(5.0 + count / 100) for count in range(15)] == [True] * 10 + [False] * 5
    assert limit.allows(6.0)
