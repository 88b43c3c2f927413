"""The commands about jobs, files, agents and access, as a shell runs them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import requests

from tests.support.command_line import CommandLine
from tests.support.processes import Agent, Router

SERVER = ("--port", "assign", "--", "python3", "-m", "http.server", "{port}", "--bind", "127.0.0.1")


@pytest.fixture
def prouter(router: Router, agent: object, tmp_path: Path) -> CommandLine:
    return CommandLine.of(router, tmp_path)


@pytest.fixture
def web(prouter: CommandLine) -> Iterator[str]:
    """The uid of a job named cliweb."""
    uid = prouter.text("run", "-d", "--name", "cliweb", *SERVER).strip()
    yield uid
    prouter.text("rm", "-f", uid)


def test_a_job_from_its_start_to_its_removal(prouter: CommandLine, web: str) -> None:
    assert len(web) == 32
    assert prouter.text("ps", "-q", "--name", "cliweb") == f"{web}\n"
    [row] = [line for line in prouter.text("ps").splitlines() if line.startswith(web[:12])]
    assert row.split()[1:3] == ["cliweb", "RUNNING"]
    info = json.loads(prouter.text("info", web[:6], "-o", "json"))
    assert (info["uid"], info["state"]) == (web, "RUNNING")
    assert prouter.text("open", "--print", "cliweb").strip() == info["url"]
    assert prouter.text("open", "--print", "--path", "a?b=c", "cliweb").strip() == info["url"] + "a?b=c"
    assert "its server answers 200" in prouter.text("explain", "cliweb")
    assert b"Serving HTTP" in prouter("logs", "cliweb").stdout
    piece = json.loads(prouter.text("logs", "cliweb", "-o", "jsonl").splitlines()[0])
    assert prouter.text("logs", "cliweb", "--since", str(piece["next"]), "-o", "jsonl") == ""
    for since in ("1h", "2020-01-31T12:00:00Z", "2020-01-31T12:00:00"):
        assert json.loads(prouter.text("logs", "cliweb", "--since", since, "-o", "jsonl").splitlines()[0]) == piece
    assert prouter.text("logs", "cliweb", "--since", "2199-01-31T12:00:00Z", "--tail", "9") == ""
    assert "write 10m" in prouter.refused("logs", "cliweb", "--since", "yesterday", code=2)
    prouter.refused("wait", "--timeout", "0.1", "cliweb", code=124)
    prouter.text("stop", "--grace", "1", "cliweb")
    prouter.text("wait", "cliweb", code=143)
    told = prouter.text("explain", "cliweb", code=1)
    assert "a request stopped it" in told
    events = prouter.text("events", "--after", "0", "--job", "cliweb", "--count", "1", "-o", "jsonl")
    assert json.loads(events)["job"]["uid"] == web
    assert prouter.text("rm", "cliweb") == f"{web}\n"
    prouter.refused("info", web, code=3)


def test_files_are_copied_as_cp_does_it(prouter: CommandLine, web: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "f.bin").write_bytes(os.urandom(70_000))
    (source / "run.sh").write_text("echo")
    (source / "run.sh").chmod(0o750)
    prouter.text("cp", str(source), "cliweb:")
    prouter.text("cp", f"{source}/.", "cliweb:contents")
    prouter("cp", "-", "cliweb:stdin.txt", stdin=b"\0piped\n")
    listed = prouter.text("ls", "-r", "cliweb", "-o", "name").splitlines()
    assert {"source/deep/f.bin", "contents/deep/f.bin", "stdin.txt"} <= set(listed)
    assert prouter("cp", "cliweb:stdin.txt", "-").stdout == b"\0piped\n"
    prouter.text("cp", "cliweb:source", str(tmp_path / "new"))
    assert (tmp_path / "new/deep/f.bin").read_bytes() == (source / "deep/f.bin").read_bytes()
    assert (tmp_path / "new/run.sh").stat().st_mode & 0o777 == 0o750
    with tarfile.open(fileobj=BytesIO(prouter("cp", "cliweb:contents", "-").stdout)) as archive:
        assert "./deep/f.bin" in archive.getnames()
    assert "prouter ls" in prouter.refused("cp", "cliweb:nothing", str(tmp_path), code=3)
    assert "nothing" in prouter.refused("ls", "cliweb:nothing", code=3)


def test_names_that_mean_several_jobs_are_an_error_that_lists_them(prouter: CommandLine, web: str) -> None:
    other = prouter.text("run", "-d", "--name", "cliweb", "--", "sleep", "60").strip()
    line = prouter.refused("stop", "cliweb", code=3)
    assert web in line
    assert other in line
    prouter.text("signal", other, "KILL")
    prouter.text("wait", other, code=137)
    prouter.text("rm", other)


def test_agents_are_drained_and_resumed(prouter: CommandLine, agent: Agent) -> None:
    assert json.loads(prouter.text("drain", agent.uid[:8], "-o", "json"))[0]["draining"]
    [row] = [line for line in prouter.text("agents").splitlines() if line.startswith(agent.uid)]
    assert "draining" in row
    assert not json.loads(prouter.text("resume", agent.uid, "-o", "json"))[0]["draining"]
    assert agent.uid in prouter.text("top", "--once")


def test_doctor_finds_a_sound_router_sound(prouter: CommandLine) -> None:
    checks = json.loads(prouter.text("doctor", "-o", "json", code=None))
    found = {check["check"]: check["level"] for check in checks}
    assert {"port", "router", "clock", "access", "versions", "streams"} <= set(found)
    assert all(found[name] == "ok" for name in ("port", "router", "clock", "access", "versions", "streams"))


def test_a_router_that_is_not_there(tmp_path: Path) -> None:
    nowhere = CommandLine("http://127.0.0.1:1", tmp_path)
    checks = json.loads(nowhere.text("doctor", "-o", "json", code=1))
    assert "start the router" in checks[-1]["do"]
    line = nowhere.refused("ps", code=5)
    assert "(Connection refused); start it there with 'prouter up'" in line


def test_a_port_of_a_job_is_a_local_one(prouter: CommandLine, web: str) -> None:
    command = prouter.start("forward", "cliweb", "0")
    assert command.stdout is not None
    assert command.stderr is not None
    try:
        found = re.fullmatch(rb"forwarding (127.0.0.1:\d+) to cliweb\n", command.stdout.readline())
        assert found is not None
        address = found[1].decode()
        for _ in range(2):
            assert "Directory listing" in requests.get(f"http://{address}/", timeout=30).text
        prouter.text("stop", "--grace", "0", "cliweb")
        with pytest.raises(requests.ConnectionError):
            requests.get(f"http://{address}/", timeout=30)
        assert command.stderr.readline().startswith(b"prouter: a connection was refused: ")
        command.send_signal(signal.SIGINT)
        assert command.wait(30) == 130
    finally:
        command.kill()
        command.communicate()


def test_a_job_without_a_server_is_forwarded_by_its_port_only(prouter: CommandLine) -> None:
    uid = prouter.text("run", "-d", "--", "sleep", "60").strip()
    assert f"prouter forward {uid}:PORT" in prouter.refused("forward", uid, code=1)
    prouter.text("rm", uid)


@pytest.mark.parametrize("command", [("events",), ("logs", "-f", "cliweb")])
def test_a_command_that_waits_for_news_ends_with_its_reader(
    prouter: CommandLine, web: str, command: tuple[str, ...]
) -> None:
    waiting = prouter.start(*command)
    assert waiting.stdout is not None
    waiting.stdout.close()
    assert waiting.wait(30) == 141


def test_head_ends_a_list_quietly(prouter: CommandLine) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = prouter.start("ps", "-a", stdout=writer)
    os.close(writer)
    _, err = command.communicate(timeout=30)
    assert (command.returncode, err) == (141, b"")


def test_shells_complete_jobs_and_agents(prouter: CommandLine, web: str, agent: Agent) -> None:
    def completed(*words: str) -> str:
        environment = {**prouter.environment, "_PROUTER_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(words)}
        environment["COMP_CWORD"] = str(len(words) - 1)
        program = "from prouter.cli import main; main(prog_name='prouter')"
        argv = [*prouter.argv()[:1], "-c", program]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=30, check=False).stdout

    assert "plain,cliweb\n" in completed("prouter", "logs", "cliw")
    assert web[:12] in completed("prouter", "stop", web[:4])
    assert agent.uid in completed("prouter", "drain", agent.uid[:4])
    assert "plain,forward\n" in completed("prouter", "forw")
