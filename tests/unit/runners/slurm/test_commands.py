"""Slurm's commands: no text of a user becomes an option, and no text of Slurm is misread."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.runners.slurm import commands
from prouter.runners.slurm.commands import QueueEntry

AGENT, JOB = "0a1b2c3d", "f" * 32
TAG = f"prouter:{AGENT}:{JOB}"
LINES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"))


def test_submission_names_tags_and_never_requeues_a_job() -> None:
    name = commands.job_name("A  notebook; rm -rf /", JOB)
    argv = commands.submit(agent=AGENT, job=JOB, name=name, directory="/s/j", log="/s/j/log", options=["--mem=5M"])
    assert argv[0] == "sbatch"
    assert "--job-name=prouter-A_notebook_rm_-rf-ffffffff" in argv
    assert f"--comment={TAG}" in argv
    assert "--no-requeue" in argv
    assert argv[-1] == "--mem=5M"


@given(st.text())
def test_a_name_is_one_plain_word(name: str) -> None:
    made = commands.job_name(name, JOB)
    assert made.isascii()
    assert not set(made) & set(" \t\n\"'\\;|,=&$`")
    assert made.startswith("prouter-")


@pytest.mark.parametrize(("printed", "number"), [("17\n", 17), ("17;cluster\n", 17), ("note of a plugin\n17\n", 17)])
def test_number_of_a_submission(printed: str, number: int) -> None:
    assert commands.parse_submitted(printed) == number


@pytest.mark.parametrize("printed", ["", "Submitted", "\n"])
def test_anything_else_is_no_number(printed: str) -> None:
    with pytest.raises(ValueError):
        commands.parse_submitted(printed)


@pytest.mark.parametrize(
    "reason",
    [
        "Resources",
        "ReqNodeNotAvail, UnavailableNodes:n1",
        "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions",
        "a | b|c",
        "'quoted' \"twice\"",
    ],
)
def test_reasons_of_any_form(reason: str) -> None:
    line = f"12|PENDING|n/a|2030-01-02T03:04:05|a-name|{TAG}|{reason}"
    (entry,) = commands.parse_queue(line, AGENT)
    assert (entry.job, entry.number, entry.state, entry.node, entry.reason) == (JOB, 12, "PENDING", None, reason)
    assert entry.expected_start == commands.parse_time("2030-01-02T03:04:05")


def test_what_slurm_does_not_know_is_none() -> None:
    (entry,) = commands.parse_queue(f"12|RUNNING|n2|N/A|a-name|{TAG}|None\n", AGENT)
    assert entry == QueueEntry(JOB, 12, "RUNNING", "n2", None, "a-name", None)


@given(LINES, st.lists(LINES))
def test_lines_of_other_jobs_change_nothing(reason: str, others: list[str]) -> None:
    ours = f"7|FAILED|n1|N/A|a-name|{TAG}|{reason}"
    entries = commands.parse_queue("\n".join([*others, ours, *others]), AGENT)
    assert [(entry.job, entry.number) for entry in entries if entry.number == 7] == [(JOB, 7)]
    assert commands.parse_queue("\n".join([*others, ours]), "00000000") == []


@given(st.text())
def test_no_text_breaks_a_parser(text: str) -> None:
    commands.parse_queue(text, AGENT)
    commands.parse_controllers(text)
    assert "\n" not in commands.refusal(text)


def test_refusals_are_slurms_words_on_one_line() -> None:
    stderr = (
        "sbatch: error: invalid partition specified: nope\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified\n"
    )
    assert commands.refusal(stderr) == (
        "invalid partition specified: nope; Batch job submission failed: Invalid partition name specified"
    )


def test_where_the_controllers_are() -> None:
    text = "SlurmctldHost[0]        = head(10.0.0.1)\nSlurmctldHost[1]        = spare\nSlurmctldPort = 6817\n"
    assert commands.parse_controllers(text) == ["10.0.0.1", "spare"]


def test_a_job_is_cancelled_by_number_and_name() -> None:
    assert commands.cancel(4, "prouter-a-ffffffff") == ["scancel", "--name=prouter-a-ffffffff", "4"]
