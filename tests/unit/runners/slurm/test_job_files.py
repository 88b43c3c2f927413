"""The files by which agent and nodes agree who has a job."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from prouter.runners.slurm.node import job_files

NODE = {job_files.NODE: "n1", "number": "7", "by": "abc"}
AGENT = {"agent": "12345678"}


def test_the_first_claim_holds(tmp_path: Path) -> None:
    assert job_files.claim(str(tmp_path), NODE) is None
    assert job_files.claim(str(tmp_path), AGENT) == NODE


def test_a_claim_that_is_being_written_is_a_nodes(tmp_path: Path) -> None:
    (tmp_path / job_files.CLAIM).touch()
    before = job_files.claim(str(tmp_path), AGENT)
    assert before is not None
    assert before[job_files.NODE]


def test_a_node_withdraws_its_own_claim_alone(tmp_path: Path) -> None:
    job_files.claim(str(tmp_path), NODE)
    job_files.withdraw(str(tmp_path), {**NODE, "by": "other"})
    assert job_files.read(str(tmp_path), job_files.CLAIM) == NODE
    assert job_files.begin(str(tmp_path), NODE)
    job_files.withdraw(str(tmp_path), NODE)
    assert not list(tmp_path.iterdir())


def test_a_claim_is_begun_or_given_up_but_never_both(tmp_path: Path) -> None:
    job_files.claim(str(tmp_path), NODE)
    assert job_files.begin(str(tmp_path), NODE)
    assert not job_files.give_up(str(tmp_path))
    assert job_files.read(str(tmp_path), job_files.CLAIM) == NODE
    job_files.clear(str(tmp_path), everything=False)
    assert not list(tmp_path.iterdir())
    job_files.claim(str(tmp_path), NODE)
    assert job_files.give_up(str(tmp_path))
    assert not job_files.begin(str(tmp_path), NODE)


def test_the_next_node_begins_after_a_claim_was_given_up(tmp_path: Path) -> None:
    job_files.claim(str(tmp_path), NODE)
    assert job_files.give_up(str(tmp_path))
    other = {**NODE, "number": "8", "by": "def"}
    assert job_files.claim(str(tmp_path), other) is None
    assert job_files.begin(str(tmp_path), other)


def test_an_agents_claim_and_one_that_is_being_written_are_not_given_up(tmp_path: Path) -> None:
    assert not job_files.give_up(str(tmp_path))
    (tmp_path / job_files.CLAIM).touch()
    assert not job_files.give_up(str(tmp_path))
    (tmp_path / job_files.CLAIM).unlink()
    job_files.claim(str(tmp_path), AGENT)
    assert not job_files.give_up(str(tmp_path))


def test_reading_opens_the_directory_before_the_file(tmp_path: Path) -> None:
    """Only then does a client of NFS see what another machine has just written, instead of what it has cached."""
    job_files.write(str(tmp_path), job_files.EXIT, {"exit_code": 7})
    program = (
        "import sys\n"
        "from prouter.runners.slurm.node import job_files\n"
        "job_files.read(sys.argv[1], job_files.EXIT)  # Imports what it needs.\n"
        "opened = []\n"
        "def heard(event, words):\n"
        "    if event == 'open' and isinstance(words[0], str): opened.append(words[0])\n"
        "sys.addaudithook(heard)\n"
        "assert job_files.read(sys.argv[1], job_files.EXIT) == {'exit_code': 7}\n"
        "assert job_files.read(sys.argv[1], job_files.END) is None\n"
        "print(*opened)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [str(tmp_path), job_files.EXIT, str(tmp_path), job_files.END], done.stderr
