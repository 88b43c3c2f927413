"""A keeper that runs out of descriptors: starts are refused, nothing is left of them, and all other jobs go on."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import pytest

from prouter.errors import StartFailed
from prouter.keeper.log_pipes import LogPipes, Output
from prouter.keeper.spawning import Command, SpawnError, start
from prouter.processes import process_tree
from prouter.processes.limits import Limits
from tests.support.keeper import Bench, alive

_MOST = 24
"""Descriptors that a start takes at most, with those that stay free."""


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A state directory and what runs on it."""
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def descriptors(pid: int) -> set[int]:
    return {int(name) for name in os.listdir(f"/proc/{pid}/fd")}


def bound_for(used: set[int], spare: int) -> int:
    """The bound of a process that has these descriptors, so that it may open `spare` more. They may have gaps."""
    free = (number for number in count() if number not in used)
    return next(islice(free, spare, None))


def bound_descriptors(pid: int, most: int) -> None:
    """Let a process open no descriptor with this number, or a higher one."""
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]))


def test_a_start_without_enough_descriptors_leaves_nothing(bench: Bench) -> None:
    runner = bench.runner()
    runner.open()
    keeper = runner.keeper_pid
    assert keeper is not None
    running = runner.spawn(bench.spec("sleep", "1000"))
    usual = resource.prlimit(keeper, resource.RLIMIT_NOFILE)[0]
    before = descriptors(keeper)
    journal = bench.state_dir / "jobs"
    refused: list[str] = []
    for spare in range(_MOST):
        spec = bench.spec("true")
        bound_descriptors(keeper, bound_for(before, spare))
        try:
            spawned = runner.spawn(spec)
        except StartFailed as error:
            refused.append(error.detail)
            assert [job["job"] for job in runner._request("hello", keep_for=0.0)["jobs"]] == [running.job]
        else:
            bench.exit(spawned)
            runner.forget(spec.job)
        finally:
            bound_descriptors(keeper, usual)
        assert descriptors(keeper) == before, f"with {spare} descriptors"
        assert process_tree.children(keeper) == [running.pid], f"with {spare} descriptors"
    assert 0 < len(refused) < _MOST
    assert all("Too many open files (raise the agent's limit of open files)" in detail for detail in refused)
    assert sorted(os.listdir(journal)) == [running.job]
    assert runner.keeper_pid == keeper
    assert alive(running.pid)


def test_nothing_is_forked_if_its_pipe_cannot_be_watched(tmp_path: Path) -> None:
    def watch(fd: int) -> None:
        raise OSError(28, "No space left on device")  # As epoll_ctl(2) beyond fs.epoll.max_user_watches.

    mine = os.getpid()
    before, children = descriptors(mine), process_tree.children(mine)
    with pytest.raises(SpawnError, match="no process could be made: No space left"):
        start(Command("a" * 32, ["true"], {}, str(tmp_path), None, None, Limits()), watch)
    assert (descriptors(mine), process_tree.children(mine)) == (before, children)


def test_no_log_is_left_open_if_its_pipe_cannot_be_watched(tmp_path: Path) -> None:
    class Full:
        """A poller that has no space for the second descriptor."""

        def __init__(self) -> None:
            self.watched: list[int] = []

        def register(self, fd: int, events: int) -> None:
            if self.watched:
                raise OSError(28, "No space left on device")
            self.watched.append(fd)

        def unregister(self, fd: int) -> None:
            self.watched.remove(fd)

    poller = Full()
    pipes = LogPipes(poller, lambda *_: None, str(tmp_path / "lock"))  # type: ignore[arg-type]
    before = descriptors(os.getpid())
    with pytest.raises(OSError, match="No space left"):
        pipes.open("a" * 32, [Output(str(tmp_path / name), None) for name in ("out", "err")])
    assert descriptors(os.getpid()) == before
    assert poller.watched == []
