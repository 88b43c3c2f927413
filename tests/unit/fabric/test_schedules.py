"""Thousands of random schedules of the adversary in `test_streams`, each determined by its seed.

``python -m tests.unit.fabric.test_schedules SEED`` runs one again and prints its steps.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.fabric.test_streams import ACCEPTOR, OPENER, Streams

SCHEDULES = 2000
_BATCH = 500


def play(seed: int, tell: Callable[[str], None] = lambda line: None) -> None:
    """Run one schedule, until everything is closed."""
    dice = random.Random(seed)
    streams = Streams()

    def do(step: Any, **arguments: Any) -> None:
        tell(f"{step.__name__} {arguments}")
        step(**arguments)
        streams.what_is_read_is_what_was_written()
        streams.never_more_than_a_window_is_kept()

    do(streams.link)
    for _ in range(dice.randint(1, 80)):
        side, pick, size = dice.randint(0, 1), dice.randint(0, 5), dice.randint(1, 12)
        kept = (dice.randint(0, 3), dice.randint(0, 3))
        noticed = dice.choice([{OPENER}, {ACCEPTOR}, {OPENER, ACCEPTOR}])
        late = dice.random() < 0.5
        steps: list[tuple[float, Any, dict[str, Any]]] = [
            (8, streams.open, {"window": size}),
            (17, streams.write, {"side": side, "pick": pick, "size": size}),
            (15, streams.consume, {"side": side, "pick": pick, "size": size}),
            (5, streams.close, {"side": side, "pick": pick}),
            (2, streams.reset, {"side": side, "pick": pick}),
            (3, streams.tick, {}),
            (25, streams.deliver, {"to": side, "count": size}),
            (5, streams.deliver_twice, {"to": side}),
            (5 if any(streams.limbo) else 0, streams.deliver_late, {"to": side, "pick": pick, "again": late}),
            (0 if streams.cut else 7, streams.lose, {"kept": kept, "late": late, "noticed": noticed}),
            (8 if streams.cut else 0, streams.heal, {}),
        ]
        _, step, arguments = dice.choices(steps, [weight for weight, _, _ in steps])[0]
        do(step, **arguments)
    tell("teardown")
    streams.teardown()


@pytest.mark.parametrize("start", range(0, SCHEDULES, _BATCH))
def test_bytes_are_accounted_for_on_every_schedule(start: int) -> None:
    for seed in range(start, start + _BATCH):
        try:
            play(seed)
        except AssertionError as error:
            raise AssertionError(f"schedule {seed}: python -m tests.unit.fabric.test_schedules {seed}") from error


if __name__ == "__main__":
    play(int(sys.argv[1]), print)
