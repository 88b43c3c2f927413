"""The conformance suite of runners: what every runner has to do, whatever place it starts jobs in.

A package with a runner subclasses `RunnerConformance` in its tests, and pytest does the rest::

    from prouter.testing.runner_conformance import RunnerConformance

    class TestMyRunner(RunnerConformance):
        runner_type = "my_package.runner:RUNNER"

Each test's docstring is a rule, with its reason. Rules about what a runner's capabilities do not promise are skipped,
and the reason says so. The suite needs ``/bin/sh``, ``env`` and ``python3`` where jobs run. It leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import gevent
import pytest

pytest.register_assert_rewrite(
    "prouter.testing.bench",
    "prouter.testing.checked_runner",
    "prouter.testing.recorded_reports",
    "prouter.testing.runner_ends",
    "prouter.testing.runner_restarts",
    "prouter.testing.runner_servers",
    "prouter.testing.runner_starts",
)

from prouter.runners import Capabilities, Runner, RunnerType, Setup  # noqa: E402
from prouter.testing.bench import Bench  # noqa: E402
from prouter.testing.runner_ends import Ends  # noqa: E402
from prouter.testing.runner_restarts import Queues, Restarts  # noqa: E402
from prouter.testing.runner_servers import Servers  # noqa: E402
from prouter.testing.runner_starts import Starts  # noqa: E402

__all__ = ["Bench", "RunnerConformance"]


class RunnerConformance(Queues, Restarts, Servers, Ends, Starts):  # pytest runs those of the last base first.
    """Every rule for a runner; a subclass says which one, and is importable as what it is named.

    Attributes:
        runner_type: a `RunnerType`, or ``MODULE:NAME`` of one, as an entry point has it.
        options: the settings ``jobs.NAME.*``.
        directory: where sandboxes and state are made: one that all machines of the runner share; None for a directory
            for temporary files.
        python: command that runs Python (any version from 3.8) where jobs run.
        environment: of jobs.
        variables: beginnings of the names of variables that the place itself adds to every job's.
        patience: seconds for which an expected event is awaited; more for a slow place.

    Overriding `make_runner` and `setup` makes runners in another way; both run in a second process, too, which the
    suite kills as if it were the agent. A runner with a queue overrides `full`.
    """

    runner_type: ClassVar[RunnerType | str]
    options: ClassVar[dict[str, Any]] = {}
    directory: ClassVar[str | None] = None
    python: ClassVar[Sequence[str]] = ("python3", "-I", "-S")
    environment: ClassVar[dict[str, str]] = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": "/",
        "LC_ALL": "C.UTF-8",
    }
    variables: ClassVar[tuple[str, ...]] = ()
    patience: ClassVar[float] = 30.0

    bench: ClassVar[Bench]
    capabilities: ClassVar[Capabilities]

    @classmethod
    def kind(cls) -> RunnerType:
        """The kind of runner that is tested."""
        kind = cls.runner_type
        if isinstance(kind, str):
            kind = EntryPoint("conformance", kind, "prouter.runners").load()
        assert isinstance(kind, RunnerType), f"{kind!r} is no prouter.runners.RunnerType"
        return kind

    @classmethod
    def setup(cls, directory: Path, keep_for: float) -> Setup:
        """The setup of a runner whose state is in a directory."""
        options = cls.kind().options(**cls.options)
        return Setup(directory / "state", directory / "jobs", keep_for, "off", options)

    @classmethod
    def make_runner(cls, setup: Setup) -> Runner:
        """Make a runner, which is not open."""
        return cls.kind().make(setup)

    @classmethod
    @contextlib.contextmanager
    def fresh(cls, *, keep_for: float) -> Iterator[Bench]:
        """A bench with a state of its own, at whose end nothing is left."""
        bench = Bench(cls, keep_for)
        try:
            yield bench
        finally:
            bench.close()
        bench.assert_no_faults()

    @pytest.fixture(autouse=True)
    def _in_time(self) -> Iterator[None]:
        """Fail a test that hangs, because a method of the runner does not return."""
        late = "the test took too long: something that the runner does never ends"
        with _unblocked(8 * self.patience), gevent.Timeout(4 * self.patience, AssertionError(late)):
            yield
        self.bench.assert_no_faults()

    @classmethod
    def setup_class(cls) -> None:
        """Open the runner that most tests share."""
        cls.bench = Bench(cls, 60.0)
        try:
            cls.bench.open()
        except BaseException:
            cls.bench.close()
            raise
        cls.capabilities = cls.bench.runner.capabilities

    @classmethod
    def teardown_class(cls) -> None:
        """End what is left."""
        cls.bench.close()


@contextlib.contextmanager
def _unblocked(seconds: float) -> Iterator[None]:
    """Break into a call that blocks the whole event loop for so long, where no timeout of gevent's can.

    It takes the alarm of setitimer(2), unless somebody else uses that, or this is not the main thread.
    """

    def alarm(signum: int, frame: object) -> None:
        raise AssertionError(
            "the event loop has not run for too long: a method of the runner blocks the thread, not only its greenlet "
            "(docs/runners.md); the traceback shows where"
        )

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGALRM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
