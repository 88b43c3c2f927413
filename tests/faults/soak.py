"""``python -m tests.faults.soak --minutes N``: faults of every kind under load of every kind, for as long as asked.

Every client checks every byte. Memory, descriptors, streams, sandboxes and the database's size are sampled all the time
and drawn into one picture at the end. The exit status is 1 if anything was lost, doubled or left behind, or grew.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.faults import clients
from tests.faults.load import Load
from tests.faults.measure import Sample, sample
from tests.faults.network import Wire
from tests.faults.stand import MIB, Amount, Stand
from tests.support.plot import Series, draw
from tests.support.processes import start_agent, start_router, wait_until

_GROWTH = 24 * MIB
"""Bytes by which a process may grow between its first minutes and the end."""
_SAMPLE_EVERY = 5.0
_DRAIN_TIMEOUT = 600
"""Seconds that replaced workers have to finish their connections."""
_LASTING = 200.0
"""Seconds that the longest connections live."""


class Soak:
    """One run.

    Args:
        it: the router, its agent and jobs.
        wire: between them.
        seed: of the faults' order.
    """

    def __init__(self, it: Stand, wire: Wire, seed: int) -> None:
        self._it = it
        self._wire = wire
        self._random = random.Random(seed)
        self._began = self._renewed = time.monotonic()
        self.samples: list[tuple[float, Sample]] = []
        self.worst: dict[str, float] = {}

    def run(self, minutes: float, amount: Amount) -> list[str]:
        """Run load and faults for so long; return what is wrong at the end, in words."""
        faults = [self._kill_broker, self._cut, self._refuse, self._swallow, self._stop_agent, self._reload]
        wrong: list[str] = []
        self._look()
        with Load() as load:
            self._it.everything(load, amount)
            load.add("drop", self._drop_things, 1)
            load.started(60)
            while time.monotonic() - self._began < minutes * 60 and not load.errors:
                fault = self._random.choice(faults)
                load.watch()
                fault()
                load.started(60)
                for kind, pause in load.pauses().items():
                    name = f"{fault.__name__.strip('_')}: {kind}"
                    self.worst[name] = max(self.worst.get(name, 0.0), pause)
                self._quiet(load)
                if time.monotonic() - self._renewed > _LASTING:
                    self._renewed = time.monotonic()
                    self._it.renew_waits(load, amount.waits)
            wrong += [f"{kind}: {error!r}" for kind, error in load.errors]
            if not wrong:
                self._it.end_waits(amount.waits)
                load.finish(120)
            print("rounds:", load.rounds(), flush=True)
        wrong += self._judge()
        return wrong

    def _quiet(self, load: Load) -> None:
        """Wait some seconds without a fault."""
        if not self.samples or time.monotonic() - self._began - self.samples[-1][0] >= _SAMPLE_EVERY:
            self._look()
        load.stopping.wait(self._random.uniform(1, 5))

    def _look(self) -> None:
        self.samples.append((time.monotonic() - self._began, sample(self._it)))

    def _judge(self) -> list[str]:
        """Compare the end with the beginning."""
        wait_until(lambda: sample(self._it).figures["waits"] == 0, 60)
        self._look()
        wrong = []
        early = [one for at, one in self.samples if at <= max(120.0, self.samples[-1][0] / 4)]
        last = self.samples[-1][1]
        for kind, size in last.rss.items():
            usual = max(one.rss[kind] for one in early)
            if kind != "broker" and size > usual + _GROWTH:  # killed again and again, it is never old
                wrong.append(f"{kind} has grown from {usual / MIB:.0f} to {size / MIB:.0f} MiB")
        for kind, count in last.descriptors.items():
            usual = max(one.descriptors[kind] for one in early)
            if count > usual + 8:
                wrong.append(f"{kind} had {usual} descriptors, now {count}")
        if last.sandboxes > len(self._it.jobs()):
            wrong.append(f"{last.sandboxes} sandboxes for {len(self._it.jobs())} jobs")
        return wrong

    # -- faults ---------------------------------------------------------------------------------------------------

    def _kill_broker(self) -> None:
        self._it.kill_broker()
        self._it.linked_again(60)

    def _cut(self) -> None:
        self._wire.cut()

    def _refuse(self) -> None:
        self._wire.refuse()
        time.sleep(self._random.uniform(0.1, 7))
        self._wire.accept()

    def _swallow(self) -> None:
        self._wire.holes = True
        time.sleep(self._random.uniform(0.1, 10))
        self._wire.holes = False

    def _stop_agent(self) -> None:
        os.kill(self._it.agent.pid, signal.SIGSTOP)
        time.sleep(self._random.uniform(0.1, 10))
        os.kill(self._it.agent.pid, signal.SIGCONT)

    def _reload(self) -> None:
        """Add a worker, then remove one: the oldest, which goes on serving its connections."""
        os.kill(self._it.router.pid, signal.SIGTTIN)
        time.sleep(2)
        os.kill(self._it.router.pid, signal.SIGTTOU)

    def _drop_things(self, gauge: object) -> None:
        """Let clients disconnect in the middle of requests, transfers and WebSockets."""
        clients.dropped(self._it.router.url, self._it.bytes_job, self._it.fast_job)
        time.sleep(0.1)


def series(samples: list[tuple[float, Sample]]) -> list[Series]:
    """Return the diagrams to draw."""

    def one(title: str, unit: str, get: Callable[[Sample], dict[str, float]]) -> Series:
        names = sorted(get(samples[-1][1]))
        return Series(title, unit, {name: [(at / 60, get(one)[name]) for at, one in samples] for name in names})

    return [
        one("resident memory", "MiB", lambda s: {kind: size / MIB for kind, size in s.rss.items()}),
        one("open descriptors", "", lambda s: {kind: float(count) for kind, count in s.descriptors.items()}),
        one("streams, waits, calls", "", lambda s: s.figures),
        one("sandboxes", "", lambda s: {"sandboxes": float(s.sandboxes)}),
        one("database", "MiB", lambda s: {"database": s.database / MIB}),
    ]


def main() -> int:
    """Run the soak test, draw its diagrams and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None, help="order of the faults; a random one is told")
    parser.add_argument("--mib", type=int, default=64, help="size of each transfer")
    parser.add_argument("--picture", type=Path, default=Path("soak.svg"))
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(1_000_000)
    print(f"seed {seed}, {options.minutes:g} minutes", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="prt-soak-"))
    amount = Amount(size=options.mib * MIB, rate=16.0 * MIB, websockets=100, waits=50, lasting=_LASTING)
    with ExitStack() as stack:
        router = start_router(directory / "router", control__drain_timeout=_DRAIN_TIMEOUT)
        stack.callback(router.stop)
        wire = stack.enter_context(Wire(router.agents))
        agent = start_agent(directory / "agent", wire.address)
        stack.callback(agent.stop)
        it = Stand(router, agent, directory / "marks")
        it.serve()
        soak = Soak(it, wire, seed)
        wrong = soak.run(options.minutes, amount)
        options.picture.write_text(draw(f"{options.minutes:g} minutes, seed {seed}", series(soak.samples)))
        for name, pause in sorted(soak.worst.items()):
            print(f"{pause:6.1f} s  {name}")
        print(f"picture: {options.picture}")
        for line in wrong:
            print(f"WRONG: {line}")
    if wrong:
        print(f"logs: {directory}")
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
