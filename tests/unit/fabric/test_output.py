"""The queue of frames for one peer: when its owner is told, and what a lost path does to it."""

from __future__ import annotations

from prouter.fabric.frames import ACK, DATA, Frame
from prouter.fabric.output import Output


class Owner:
    """Counts how often it was told of frames."""

    def __init__(self) -> None:
        self.told = 0
        self.told_late = 0
        self.output = Output(self._on_frames, self._on_late_frames)
        self.output.up = True

    def _on_frames(self) -> None:
        self.told += 1

    def _on_late_frames(self) -> None:
        self.told_late += 1


def test_the_owner_is_told_once_until_it_takes_the_frames() -> None:
    owner = Owner()
    frames = [Frame(DATA, sid=number) for number in range(3)]
    for frame in frames:
        owner.output.send(frame)
    assert owner.told == 1
    assert owner.output.take() == frames
    owner.output.send(frames[0])
    assert owner.told == 2
    assert owner.output.departures == 1


def test_a_late_frame_waits_for_company() -> None:
    owner = Owner()
    owner.output.send_late(Frame(ACK))
    assert (owner.told, owner.told_late) == (0, 1)
    owner.output.send(Frame(DATA))
    assert (owner.told, owner.told_late) == (1, 1), "a frame that may not wait is announced as such"
    owner.output.send_late(Frame(ACK))
    assert (owner.told, owner.told_late) == (1, 1), "it leaves with the others"
    assert [frame.type for frame in owner.output.take()] == [ACK, DATA, ACK]


def test_without_a_path_nothing_is_queued() -> None:
    owner = Owner()
    owner.output.up = False
    owner.output.send(Frame(DATA))
    owner.output.send_late(Frame(ACK))
    assert (owner.told, owner.told_late, owner.output.take()) == (0, 0, [])


def test_frames_for_a_lost_path_are_dropped_and_the_next_one_is_announced_again() -> None:
    owner = Owner()
    owner.output.send(Frame(DATA))
    owner.output.drop()
    assert owner.output.take() == []
    owner.output.send(Frame(DATA))
    assert owner.told == 2
