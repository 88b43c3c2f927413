"""Slurm's commands without I/O: their arguments, and what they print.

Checked against Slurm 22.05 and its manual pages. Every command is a list of arguments; no shell sees it.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

__all__ = [
    "QueueEntry",
    "cancel",
    "configuration",
    "job_name",
    "parse_controllers",
    "parse_queue",
    "parse_submitted",
    "parse_time",
    "queue",
    "refusal",
    "submit",
    "tag",
]

_TAG = re.compile(r"prouter:([0-9a-f]{8}):([0-9a-f]{32})")
_SEPARATOR = "|"
# The reason is the last, because it alone may contain the separator; the comment is ours.
_FORMAT = _SEPARATOR.join(("%i", "%T", "%B", "%S", "%j", "%k", "%r"))
_ABSENT = frozenset({"", "N/A", "n/a", "(null)", "NONE", "Unknown"})
_NAME = re.compile(r"[^A-Za-z0-9_.+-]+")
_NAME_LENGTH = 40


@dataclass(frozen=True)
class QueueEntry:
    """One job of ours in Slurm's queue.

    Attributes:
        job: uid of our job, from the comment.
        number: Slurm's id. Slurm may give it out again after its controller was killed.
        state: such as ``PENDING``, in capitals.
        node: the allocated node on which the batch script runs, None before.
        expected_start: seconds since the epoch, None if Slurm does not say.
        name: its name in Slurm.
        reason: why it waits or how it ended, in Slurm's words; None for none.
    """

    job: str
    number: int
    state: str
    node: str | None
    expected_start: float | None
    name: str
    reason: str | None


def tag(agent: str, job: str) -> str:
    """The comment by which a job in Slurm's queue is known to be ours.

    Args:
        agent: 8 hex digits, the same over restarts of an agent.
        job: uid, 32 hex digits.
    """
    return f"prouter:{agent}:{job}"


def job_name(name: str, job: str) -> str:
    """The name of a job in Slurm: its own, as far as Slurm cannot misread it, and the beginning of its uid."""
    shown = _NAME.sub("_", name).strip("_")[:_NAME_LENGTH] or "job"
    return f"prouter-{shown}-{job[:8]}"


def submit(*, agent: str, job: str, name: str, directory: str, log: str, options: list[str]) -> list[str]:
    """Arguments of the command that submits the script on its stdin.

    Args:
        name: what `job_name` has made.
        directory: where the script starts.
        log: file for what the script itself prints; its directory must exist, or Slurm fails the job.
        options: further options.
    """
    return [
        "sbatch",
        "--parsable",
        f"--job-name={name}",
        f"--comment={tag(agent, job)}",
        f"--chdir={directory}",
        f"--output={log}",
        "--open-mode=append",
        # A node that was lost may still run the job: Slurm must not run it a second time by itself.
        "--no-requeue",
        # What sbatch itself gets is next to nothing. NONE would load a login shell's variables, which takes seconds.
        "--export=ALL",
        *options,
    ]


def parse_submitted(stdout: str) -> int:
    """The id that sbatch prints.

    Raises:
        ValueError: it printed something else.
    """
    # "--parsable" prints ID or ID;CLUSTER, and a plugin may print lines before it.
    last = stdout.strip().rpartition("\n")[2]
    return int(last.partition(";")[0])


def queue(user: str) -> list[str]:
    """Arguments of the one command that tells the state of all jobs of a user, those that ended lately included."""
    return ["squeue", "--noheader", "--states=all", f"--user={user}", f"--format={_FORMAT}"]


def parse_queue(stdout: str, agent: str) -> list[QueueEntry]:
    """The jobs of this agent, from what `queue` prints. Lines of other jobs are skipped, whatever they contain."""
    found = []
    for line in stdout.splitlines():
        fields = line.split(_SEPARATOR, 6)
        if len(fields) < 7:
            continue
        number, state, node, start, name, comment, reason = fields
        told = _TAG.fullmatch(comment)
        if told is None or told[1] != agent or not number.isascii() or not number.isdigit():
            continue
        found.append(
            QueueEntry(told[2], int(number), state.strip().upper(), _text(node), parse_time(start), name, _text(reason))
        )
    return found


def cancel(number: int, name: str) -> list[str]:
    """Arguments of the command that cancels a job. It says nothing about a job that it does not know.

    Args:
        name: the job's name: another job may have got the number.
    """
    return ["scancel", f"--name={name}", str(number)]


def configuration() -> list[str]:
    """Arguments of the command that tells Slurm's configuration."""
    return ["scontrol", "show", "config"]


def parse_controllers(stdout: str) -> list[str]:
    """Addresses of Slurm's controllers, from what `configuration` makes Slurm print: ``SlurmctldHost[0] = NAME(ADDR)``,
    the address only if it is not the name's."""
    found = re.findall(r"^SlurmctldHost\[\d+\]\s*=\s*([^\s()]+)(?:\(([^\s()]+)\))?", stdout, re.MULTILINE)
    return [address or name for name, address in found]


def refusal(stderr: str) -> str:
    """Slurm's words in what a command wrote to stderr, on one line and without the command's name."""
    lines = [re.sub(r"^\w+: (?:(?:fatal|error): )?", "", line).strip() for line in stderr.splitlines()]
    lines = [line for line in lines if line]
    # sbatch adds "Batch job submission failed: WHY" to its complaint, if any: the last line is the reason.
    return "; ".join(dict.fromkeys(lines[-3:])) or "it gave no reason"


def parse_time(text: str) -> float | None:
    """Slurm's time in the local zone, as seconds since the epoch; None if it is none.

    With SLURM_TIME_FORMAT unset, Slurm prints ISO 8601 without a zone.
    """
    try:
        return time.mktime(time.strptime(text.strip(), "%Y-%m-%dT%H:%M:%S"))
    except (ValueError, OverflowError):
        return None


def _text(text: str) -> str | None:
    text = text.strip()
    return None if text in _ABSENT or text == "None" else text
