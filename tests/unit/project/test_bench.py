"""Verdicts that the benchmarks derive from measurements, and parts of their job servers that can fail unnoticed."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from rich.console import Console

from tests.bench import measure, processes, report
from tests.bench.profile import functions
from tests.bench.rows import Bound, Probe, Row, Settings, at_least, at_most
from tests.bench.scale.figures import Figure, Results
from tests.bench.scale.plots import write_plots
from tests.bench.stack import Stack
from tests.jobs.fast_server import Echo
from tests.support.processes import wait_until


def test_bound_compares_with_a_number_a_neighbour_or_a_neighbours_value_plus_something() -> None:
    values = {"chp": 100.0, "direct": 0.1, "prouter2": 150.0}
    assert at_least(1.5, "chp").holds(values) is True
    assert at_least(1.6, "chp").holds(values) is False
    assert at_most(150).holds(values) is True
    assert at_most(0.4, above="direct").holds({"direct": 0.1, "prouter2": 0.5}) is True
    assert at_most(0.4, above="direct").holds({"direct": 0.1, "prouter2": 0.6}) is False


def test_bound_is_silent_about_what_was_not_measured() -> None:
    assert at_least(1, "chp").holds({"prouter2": 1.0}) is None
    assert at_least(1, "chp").holds({"chp": 1.0}) is None
    assert at_most(3).holds({"prouter1": 1.0}) is None


def test_verdict_says_when_a_stack_it_rests_on_was_disturbed() -> None:
    values = {"chp": 1.0, "nginx": 1.0, "prouter2": 2.0}
    measured = {name: measure.Measured(disturbed=0.5 if name == "nginx" else 0.0) for name in values}
    assert report.verdict(at_least(1, "chp"), values, measured).startswith("[green]")
    assert report.verdict(at_least(1, "nginx"), values, measured).startswith("~[green]")
    assert "✗" in report.verdict(Bound("<=", 1), values, measured)


def test_results_of_scale_have_verdicts_and_plots(tmp_path: Path) -> None:
    results = Results([Figure("a", "agents", "s", 12.0, 15.0, 10.0), Figure("b", "rate", "/s", 5.0, 9.0, higher=True)])
    for seconds, agents in ((0.0, 0.0), (1.5, 80.0), (3.0, 100.0)):
        results.point("restart", "2,000 agents", seconds, agents)
    assert results.missed() == ["b"]
    figures = results.document({})["figures"]
    assert (figures["a"]["holds"], figures["a"]["reached"], figures["b"]["reached"]) == (True, False, None)
    (path,) = write_plots(results, tmp_path)
    assert ">2,000 agents</text>" in path.read_text()


class Here(Stack):
    """This process, and nothing that could be started."""

    def processes(self) -> list[processes.Process]:
        started = processes.stat(os.getpid())
        assert started is not None
        return [processes.Process(os.getpid(), int(started[19]), "worker")]


def test_measuring_warms_up_takes_turns_and_counts_cpu() -> None:
    calls: list[str] = []

    def work(stack: Stack, settings: Settings) -> dict[str, float]:
        calls.append(stack.name)
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
        return {"requests": 1000.0}

    stacks: dict[str, Stack] = {}
    for name in ("one", "two"):
        stacks[name] = Here()
        stacks[name].name = name
    probe = Probe("p", work, (Row("p.cpu", "cpu", "µs", "cpu_us", at_most(1, "two")),), ("one", "two"))
    try:
        results = measure.measure([probe], stacks, Settings(rounds=2), lambda text: None)
    finally:
        for stack in stacks.values():
            stack.close()
    assert calls == ["one", "two", "one", "two", "two", "one"]
    assert results["p"]["one"].median("cpu_us") == pytest.approx(100, abs=40)
    assert len(results["p"]["one"].rounds) == 2


def test_a_failed_measurement_is_shown_and_the_rest_goes_on() -> None:
    def broken(stack: Stack, settings: Settings) -> dict[str, float]:
        raise ConnectionResetError("gone")

    row = Row("p.x", "what", "u", "x", at_least(1))
    probe, stack = Probe("p", broken, (row,), ("prouter2",)), Here()
    try:
        results = measure.measure([probe], {"prouter2": stack}, Settings(rounds=1), lambda text: None)
    finally:
        stack.close()
    out = io.StringIO()
    report.show([probe], results, {"prouter2": "pRouter"}, Console(file=out, width=200))
    assert "failed" in out.getvalue()
    assert "ConnectionResetError: gone" in out.getvalue()


def test_processes_are_found_by_mark_and_by_descent_and_ended(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys; subprocess.run(['env', '-i', sys.executable, '-c', 'import time; time.sleep(60)'])"
    )
    # Its own mark: the same test may run beside this one, from another checkout.
    mark = f"unit-{os.getpid()}-{uuid.uuid4().hex}"
    environ = {**os.environ, processes.MARK: mark}
    parent = subprocess.Popen([sys.executable, "-c", script], env=environ)
    try:
        wait_until(lambda: len(processes.find(mark, tmp_path)) == 2, 30, "parent and child are found")
    finally:
        processes.end(mark, tmp_path, grace=2.0)
        parent.wait()
    assert processes.find(mark, tmp_path) == []


def test_profile_counts_each_function_once_per_sample() -> None:
    total, own, below = functions("main;loop;send 3\nmain;loop;loop 2\n")
    assert (total, own["send"], own["loop"], below["loop"], below["main"]) == (5, 3, 2, 5, 5)


def length(size: int, mask: int) -> bytes:
    """A frame's length bytes."""
    if size < 126:
        return bytes((mask | size,))
    return struct.pack("!BH", mask | 126, size) if size < 65536 else struct.pack("!BQ", mask | 127, size)


def frame(payload: bytes, opcode: int, key: bytes) -> bytes:
    """A client's frame."""
    masked = bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))
    return bytes((0x80 | opcode,)) + length(len(payload), 0x80) + key + masked


def reply(payload: bytes, opcode: int) -> bytes:
    """A server's frame."""
    return bytes((0x80 | opcode,)) + length(len(payload), 0) + payload


@pytest.mark.parametrize("seed", range(20))
def test_echo_answers_the_same_however_the_bytes_are_cut(seed: int) -> None:
    dice = random.Random(seed)
    sent, wanted = b"", b""
    for _ in range(12):
        opcode = dice.choice([1, 2, 9])
        payload = dice.randbytes(dice.choice([0, 1, 5, 125] if opcode == 9 else [0, 1, 64, 125, 126, 5000, 70000]))
        sent += frame(payload, opcode, dice.choice([b"\0\0\0\0", dice.randbytes(4)]))
        wanted += reply(payload, 10 if opcode == 9 else opcode)
    sent += frame(b"\x03\xe8", 8, b"abcd")
    wanted += reply(b"\x03\xe8", 8)
    echo, got = Echo(), b""
    while sent:
        cut = dice.choice([1, 2, 7, 70, 4000, 100000])
        got += b"".join(echo.feed(sent[:cut]))
        sent = sent[cut:]
    assert got == wanted
    assert echo.closed
