"""``python -m tests.simulation --seed N [--trace]`` runs one schedule again; without a seed it looks for failures."""

from __future__ import annotations

import argparse
import logging
import time
import traceback

from tests.simulation.schedule import Schedule


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="the schedule to run again")
    parser.add_argument("--trace", action="store_true", help="print what happens, and the broker's log")
    parser.add_argument("--count", type=int, default=1000, help="how many schedules to run without a seed")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    options = parser.parse_args()
    logging.basicConfig(level=logging.DEBUG if options.trace else logging.CRITICAL)
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + options.count)
    started = time.monotonic()
    failed = 0
    for seed in seeds:
        schedule = Schedule(seed, tracing=options.trace)
        try:
            schedule.run()
        except Exception:
            failed += 1
            print(f"seed {seed}: {traceback.format_exc().strip().splitlines()[-1]}")
            if options.trace:
                traceback.print_exc()
        if options.trace:
            print("\n".join(schedule.world.trace or []))
    seconds = time.monotonic() - started
    print(f"{len(seeds)} schedules, {failed} failed, {len(seeds) / seconds:.0f} a second")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
