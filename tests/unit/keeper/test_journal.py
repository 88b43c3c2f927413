"""The keeper's journal stays whole when the disk is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from prouter.keeper.journal import Entry, Journal


def test_a_full_disk_leaves_what_was_known_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(str(tmp_path))
    journal.add("known", "/sandbox", "/a/long/group")
    journal.add("known", "/sandbox")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        for job in ("known", "new"):
            with pytest.raises(OSError, match="full"):
                journal.add(job, "/another")
    assert journal.entries() == {"known": Entry("/sandbox", None)}
