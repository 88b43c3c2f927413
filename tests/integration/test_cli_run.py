"""``prouter run``: output apart and whole, exit codes, signals, terminals, pipes, a killed broker."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prouter.cli import main
from tests.support.command_line import CommandLine
from tests.support.cutting_relay import CuttingRelay, randomly
from tests.support.processes import Router, start_agent, start_router, wait_until

POLITE = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done"
STUBBORN = "trap 'echo no' TERM; echo ready; while :; do sleep 0.05; done"
IDLE = "echo ready; exec sleep 100"


@pytest.fixture
def prouter(router: Router, agent: object, tmp_path: Path) -> CommandLine:
    return CommandLine.of(router, tmp_path)


@pytest.fixture
def left(router: Router) -> Callable[[str], bool]:
    """Whether a job of this name is still there."""

    def there(name: str) -> bool:
        return bool(router.get(f"/jobs?name={name}").json()["jobs"])

    return there


def started(command: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """Wait until the job runs."""
    assert command.stdout is not None
    assert command.stdout.readline() == b"ready\n"
    return command


def test_both_outputs_come_apart_byte_for_byte_with_the_exit_code(prouter: CommandLine, left: Any) -> None:
    code = "import os; os.write(1, bytes(range(256)) * 2000); os.write(2, b'\\xff\\x00 err'); os._exit(7)"
    done = prouter("run", "--name", "apart", "--", sys.executable, "-c", code, code=7)
    assert done.stdout == bytes(range(256)) * 2000
    assert done.stderr == b"\xff\x00 err"
    assert not left("apart")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--", "sh", "-c", "kill -KILL $$"), 137),
        (("--timeout", "0.2s", "--", "sleep", "60"), 124),
        (("--", "no-such-program"), 125),
        (("--agent", "nobody", "--", "true"), 125),
    ],
)
def test_exit_codes(prouter: CommandLine, arguments: tuple[str, ...], code: int) -> None:
    if code == 125:
        prouter.refused("run", *arguments, code=code)
    else:
        prouter.text("run", *arguments, code=code)


@pytest.mark.parametrize(
    ("script", "signals", "code", "said"),
    [
        (POLITE, [signal.SIGINT], 3, b"bye\n"),
        (STUBBORN, [signal.SIGINT, signal.SIGINT], 137, b"no\n"),
        (IDLE, [signal.SIGTERM], 143, b""),
        (IDLE, [signal.SIGHUP], 143, b""),
    ],
)
def test_signals_stop_and_then_kill(
    prouter: CommandLine, left: Any, script: str, signals: list[signal.Signals], code: int, said: bytes
) -> None:
    command = started(prouter.start("run", "--name", "signalled", "--", "sh", "-c", script))
    assert command.stdout is not None
    for one in signals[:-1]:
        command.send_signal(one)
        assert command.stdout.readline() == b"no\n"
    command.send_signal(signals[-1])
    out, _ = command.communicate(timeout=30)
    assert command.returncode == code
    assert out in (said, b"") if script is STUBBORN else out == said  # SIGTERM may reach it once more before SIGKILL
    assert not left("signalled")


@pytest.mark.parametrize("signals", [1, 2])
def test_a_signal_while_it_is_being_made_leaves_no_job(prouter: CommandLine, left: Any, signals: int) -> None:
    command = prouter.start("run", "--name", "early", "--port", "notify", "--", "sleep", "60")
    wait_until(lambda: left("early"))
    for _ in range(signals):
        command.send_signal(signal.SIGINT)
    command.communicate(timeout=30)
    assert command.returncode == 130
    assert not left("early")


def test_ctrl_c_in_a_terminal_and_a_closed_terminal(prouter: CommandLine, left: Any) -> None:
    for close in (False, True):
        controller, terminal = pty.openpty()
        command = prouter.start(
            "run", "--name", "terminal", "--", "sh", "-c", POLITE,
            stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
            preexec_fn=_own_terminal,
        )  # fmt: skip
        os.close(terminal)
        seen = b""
        while b"ready" not in seen:
            seen += os.read(controller, 4096)
        if close:
            os.close(controller)
            command.wait(30)
        else:
            os.write(controller, b"\x03")
            while b"bye" not in seen:
                seen += os.read(controller, 4096)
            assert command.wait(30) == 3
            assert b"stopping the job" in seen
            os.close(controller)
        assert not left("terminal")


def _own_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_reader_that_ends_early_ends_the_job(prouter: CommandLine, left: Any) -> None:
    command = started(prouter.start("run", "--name", "piped", "--", "sh", "-c", IDLE))
    assert command.stdout is not None
    command.stdout.close()  # the job says nothing more
    assert command.wait(30) == 141
    assert command.stderr is not None
    assert command.stderr.read() == b""
    assert not left("piped")


def test_files_go_there_and_come_back(prouter: CommandLine, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    there.mkdir()
    back.mkdir()
    data = os.urandom(300_000)
    (there / "in.bin").write_bytes(data)
    script = "mkdir -p out/deep; cp in.bin out/deep/; echo 1 > a.csv; echo 2 > b.txt; echo $HIDDEN"
    command = ("run", "--upload", str(there), "--download", "out", "--download", "*.csv", "-e", "HIDDEN=seen")
    assert prouter(*command, "--", "sh", "-c", script, cwd=back).stdout == b"seen\n"
    assert (back / "out/deep/in.bin").read_bytes() == data
    assert sorted(path.name for path in back.iterdir()) == ["a.csv", "out"]


def test_nothing_is_lost_or_doubled_over_a_killed_broker_and_cut_links(
    launch: Callable[..., Any], tmp_path: Path
) -> None:
    router = launch(start_router, workers=1)
    launch(start_agent, router)
    code = "import time\nfor n in range(400):\n print(n, 'x' * 50, flush=True); time.sleep(0.01)\nraise SystemExit(9)"
    with CuttingRelay(router.url, randomly(7, 20_000, connections=12)) as relay:
        prouter = CommandLine(relay.url, tmp_path)
        command = prouter.start("run", "--name", "lasting", "--", sys.executable, "-c", code)
        assert command.stdout is not None
        first = command.stdout.readline()
        router.kill_broker()
        rest, err = command.communicate(timeout=60)
        assert (command.returncode, err) == (9, b"")
        assert (first + rest).decode() == "".join(f"{n} {'x' * 50}\n" for n in range(400))
        assert relay.cut
    made = (
        router.get("/jobs?name=lasting").json()["jobs"] + router.get("/jobs?name=lasting&state=CLOSED").json()["jobs"]
    )
    assert len(made) == 1


def test_output_that_cannot_be_written_is_an_error_and_ends_the_job(prouter: CommandLine, left: Any) -> None:
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        with open("/dev/full", "wb") as full:
            streams = {name: full}
            command = prouter.start(
                "run", "--name", "full", "--", "sh", "-c", f"echo x >&{descriptor}; {IDLE}", **streams
            )
            _, err = command.communicate(timeout=30)
        assert command.returncode == 125
        if name == "stdout":
            assert err == b"prouter: the job's stdout cannot be written: No space left on device\n"
        assert not left("full")


@pytest.mark.parametrize("server", [["--port", "notify"], []], ids=["starting", "running"])
def test_a_signal_ends_the_command_even_if_the_router_is_gone_for_good(
    router: Router, agent: object, server: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("prouter.cli.jobs.run.LONG", 0.5)
    monkeypatch.setattr("prouter.client.core.jobs._START", 0.5)
    relay = CuttingRelay(router.url)

    def started() -> str:
        jobs = router.get("/jobs?name=forsaken").json()["jobs"]
        return jobs[0]["path"] if jobs and router.get(f"{jobs[0]['path']}/file/started").ok else ""

    def lose_router() -> None:
        wait_until(started)
        relay.close()
        os.kill(os.getpid(), signal.SIGTERM)

    losing = threading.Thread(target=lose_router)
    losing.start()
    with pytest.raises(SystemExit) as left:
        main(["run", "--url", relay.url, "--name", "forsaken", *server, "--", "sh", "-c", "touch started; sleep 100"])
    losing.join()
    path = started()
    router.post(f"{path}/remove")
    assert left.value.code == 125
    assert f"the job is still there: 'prouter rm {path.rpartition('/')[2]}'" in capfd.readouterr().err
