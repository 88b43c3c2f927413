"""A keeper's job changes its state only as its table allows."""

from __future__ import annotations

from itertools import product

import pytest

from prouter.keeper.job import NEXT, WITH_PROCESSES, WITHOUT_PROCESSES, Job, JobState


def job_in(state: JobState) -> Job:
    job = Job("0123456789abcdef" * 2, {}, None)
    job.state = state
    return job


def test_every_state_has_its_row_and_a_way_to_the_end() -> None:
    assert set(NEXT) == set(JobState)
    for state in JobState:
        reached = {state}
        while not reached >= (more := set().union(*(NEXT[one] for one in reached))):
            reached |= more
        assert JobState.ENDED in reached


@pytest.mark.parametrize(("before", "after"), list(product(JobState, JobState)))
def test_a_job_changes_as_the_table_allows_and_no_other_way(before: JobState, after: JobState) -> None:
    job = job_in(before)
    if after in NEXT[before]:
        job.change(after)
        assert job.state is after
    else:
        with pytest.raises(RuntimeError, match=f"from {before.value} to {after.value}"):
            job.change(after)
        assert job.state is before


def test_a_job_that_is_ending_neither_takes_signals_nor_can_be_dropped() -> None:
    assert set(JobState) - WITH_PROCESSES - WITHOUT_PROCESSES == {JobState.ENDING}
    assert job_in(JobState.ENDING).ending
