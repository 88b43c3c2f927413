"""A sandbox's quota: how often it measures, and what it refuses."""

from __future__ import annotations

import pytest

from prouter.agent.sandbox.quota import Claim, Quota
from prouter.errors import NoSpace


class Disk:
    """What a measurement finds."""

    def __init__(self, size: int = 0) -> None:
        self.size = size
        self.measured = 0

    def measure(self) -> int:
        self.measured += 1
        return self.size


def test_many_small_files_are_measured_once_and_counted_in_blocks() -> None:
    disk = Disk()
    claim = Claim(Quota(disk.measure), 100 * 4096)
    for _ in range(100):
        claim.cover(1)
        claim.settle()
    assert disk.measured == 1
    disk.size = 100 * 4096
    with pytest.raises(NoSpace):
        claim.cover(1)
    assert disk.measured == 2


def test_what_was_deleted_meanwhile_is_found_before_anything_is_refused() -> None:
    disk = Disk(4096)
    claim = Claim(Quota(disk.measure), 4096)
    with pytest.raises(NoSpace):
        claim.cover(1)
    disk.size = 0
    claim.cover(1)


def test_a_file_without_a_name_counts_though_no_measurement_sees_it() -> None:
    disk = Disk()
    quota = Quota(disk.measure)
    one, two = Claim(quota, 8192, unseen=True), Claim(quota, 8192, unseen=True)
    one.cover(8192)
    with pytest.raises(NoSpace):
        two.cover(1)
    one.release()
    two.cover(8192)
    two.settle()
    disk.size = 8192
    with pytest.raises(NoSpace):
        one.cover(1)


def test_what_appears_during_a_measurement_is_not_forgotten() -> None:
    quota = Quota(lambda: 0)
    upload = Claim(quota, 8192, unseen=True)
    upload.cover(4096)

    def finds_nothing_while_the_upload_gets_its_name() -> int:
        upload.settle()
        return 0

    quota._measure = finds_nothing_while_the_upload_gets_its_name
    with pytest.raises(NoSpace):
        Claim(quota, 8192).cover(8192)
