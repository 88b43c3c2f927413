"""Ended streams are remembered, but not forever."""

from __future__ import annotations

from prouter.fabric import tombstones
from prouter.fabric.tombstones import Tombstone, Tombstones


def test_how_a_stream_ended_is_remembered() -> None:
    ended = Tombstones()
    ended.add(7, 100, None)
    ended.add(8, 0, "job_ended")
    assert ended.get(7) == Tombstone(100, None)
    assert ended.get(8) == Tombstone(0, "job_ended")
    assert ended.get(9) is None


def test_the_oldest_are_forgotten_with_their_late_bytes() -> None:
    ended = Tombstones()
    for sid in range(tombstones._REMEMBERED):
        ended.add(sid, 0, None)
    assert ended.late_bytes(0, 10) == 10
    assert ended.late_bytes(0, 5) == 15
    assert ended.get(0) is not None
    ended.add(tombstones._REMEMBERED, 0, None)
    assert ended.get(0) is None
    assert ended.get(1) is not None
    assert ended.late_bytes(0, 1) == 1
