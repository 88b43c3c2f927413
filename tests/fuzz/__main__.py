"""``make fuzz``: try random input for a long time.

Every case is made from a seed of its own. A failure names the target and the seed, and the command that repeats it.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
from random import Random

from tests.fuzz.targets import TARGETS

__all__ = ["run"]

_TOLD_EVERY = 60.0
"""Seconds between lines about progress."""
_MOST_FAILURES = 5
"""Failures of a target after which it is given up."""


def run(name: str, first: int, seconds: float) -> tuple[int, list[int]]:
    """Try cases of a target for some seconds, at least one; return how many, and the seeds of those that failed."""
    failed: list[int] = []
    count, began = 0, time.monotonic()
    told = began + _TOLD_EVERY
    with TARGETS[name]() as case:
        while len(failed) < _MOST_FAILURES:
            seed = first + count
            count += 1
            try:
                case(Random(seed))
            except Exception:
                traceback.print_exc()
                print(
                    f'{name}: seed {seed} failed; again: make fuzz ARGS="--seed {seed} --seconds 0 {name}"', flush=True
                )
                failed.append(seed)
            now = time.monotonic()
            if now > told:
                told = now + _TOLD_EVERY
                print(f"{name}: {count} cases", flush=True)
            if now - began >= seconds:
                break
    return count, failed


def main() -> int:
    """Run the targets that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"one of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument(
        "--seed", type=int, help="of the first case; others follow. By default a different one each time"
    )
    options = parser.parse_args()
    unknown = [name for name in options.targets if name not in TARGETS]
    if unknown:
        parser.error(f"no target is called {unknown[0]!r}; targets: {', '.join(TARGETS)}")
    first = options.seed if options.seed is not None else int(time.time()) * 1000
    logging.disable(logging.WARNING)  # that input was refused is no news here
    bad = 0
    for name in options.targets or TARGETS:
        print(f"{name}: seeds from {first}", flush=True)
        count, failed = run(name, first, options.seconds)
        bad += len(failed)
        print(f"{name}: {count} cases, {len(failed)} failed", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
