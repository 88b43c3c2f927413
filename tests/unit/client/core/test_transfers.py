"""Files arrive whole over every loss; a sync sends what differs, and nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prouter.client.core import files, transfers
from prouter.client.core.errors import ConnectionFailed, NotFound, RouterError
from prouter.client.core.flow import Lost, Request
from prouter.client.core.models import Synced
from prouter.client.core.uploads import uploads_of
from tests.support.flow_player import Answer, FlowPlayer, context
from tests.support.sandbox_model import JOB, SandboxModel

CUTS = st.lists(st.none() | st.integers(-1, 3000), max_size=8)
QUICK = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
DATA = bytes(range(256)) * 9


@QUICK
@given(CUTS, st.integers(0, len(DATA)), st.none() | st.integers(0, len(DATA)))
def test_a_file_is_read_whole_over_cuts(cuts: list[int | None], offset: int, length: int | None) -> None:
    sandbox = SandboxModel(cuts)
    sandbox.put("d/f", DATA, 0)
    expected = DATA[offset:] if length is None else DATA[offset : offset + length]
    assert FlowPlayer(sandbox).run(files.read_file(context(), JOB, "d/f", offset, length)) == expected


@QUICK
@given(CUTS)
def test_a_download_over_cuts_leaves_the_whole_file_and_nothing_else(tmp_path: Path, cuts: list[int | None]) -> None:
    sandbox = SandboxModel([None, *cuts])
    sandbox.put("d/f", DATA, 0)
    target = tmp_path / "target"
    told: list[tuple[int, int | None]] = []
    flow = transfers.download(context(), JOB, "d/f", target, progress=lambda *now: told.append(now))
    assert FlowPlayer(sandbox).run(flow) is not None
    assert target.read_bytes() == DATA
    assert told[-1] == (len(DATA), len(DATA))
    assert os.listdir(tmp_path) == ["target"]


def test_a_file_that_changes_while_it_is_received_is_received_anew(tmp_path: Path) -> None:
    sandbox = SandboxModel([None, 100])
    sandbox.put("f", DATA, 0)

    def changing(request: object) -> object:
        answer = sandbox(request)  # type: ignore[arg-type]
        if len(player.requests) == 2:
            sandbox.put("f", DATA[::-1], 0)
        return answer

    player = FlowPlayer(changing)  # type: ignore[arg-type]
    player.run(transfers.download(context(), JOB, "f", tmp_path / "f"))
    assert (tmp_path / "f").read_bytes() == DATA[::-1]
    assert player.requests[2].headers["Range"] == "bytes=100-"
    assert "Range" not in player.requests[3].headers


def test_a_proxy_that_drops_ranges_mixes_up_no_file(tmp_path: Path) -> None:
    sandbox = SandboxModel()
    sandbox.put("f", DATA, 0)

    def deaf(request: Request) -> Answer | Lost:
        return sandbox(Request(request.method, request.path, {**request.headers, "Range": "bytes="}))

    sandbox.cuts = iter([100, 200])
    assert FlowPlayer(deaf).run(files.read_file(context(), JOB, "f", 0, None)) == DATA
    sandbox.cuts = iter([None, 100, 200])
    FlowPlayer(deaf).run(transfers.download(context(), JOB, "f", tmp_path / "f"))
    assert (tmp_path / "f").read_bytes() == DATA
    for offset, length in ((5, None), (0, 9)):
        with pytest.raises(RouterError, match="drops the field Range"):
            FlowPlayer(deaf).run(files.read_file(context(), JOB, "f", offset, length))
    sandbox.cuts = iter([None, *[100] * 9])
    with pytest.raises(RouterError, match="drops the field Range"):
        FlowPlayer(deaf).run(transfers.download(context(), JOB, "f", tmp_path / "g"))
    assert os.listdir(tmp_path) == ["f"]


def test_a_file_is_sent_again_if_its_permission_bits_differ(tmp_path: Path) -> None:
    sandbox = SandboxModel()
    script = tmp_path / "script"
    script.write_text("#!/bin/sh")
    script.chmod(0o644)
    for mode, sent in ((0o644, ("script",)), (0o644, ()), (0o755, ("script",))):
        script.chmod(mode)
        done = FlowPlayer(sandbox).run(transfers.sync(context(), JOB, tmp_path, "."))
        assert done is not None
        assert done.sent == sent


def test_a_file_whose_connection_breaks_after_its_last_byte_is_whole(tmp_path: Path) -> None:
    for length in (None, 50):
        sandbox = SandboxModel([len(DATA) if length is None else length])
        sandbox.put("f", DATA, 0)
        player = FlowPlayer(sandbox)
        assert player.run(files.read_file(context(), JOB, "f", 0, length)) == DATA[:length]
        assert len(player.requests) == 1
    sandbox = SandboxModel([None, len(DATA)])
    sandbox.put("f", DATA, 0)
    FlowPlayer(sandbox).run(transfers.download(context(), JOB, "f", tmp_path / "f"))
    assert (tmp_path / "f").read_bytes() == DATA


def test_a_download_that_fails_leaves_nothing(tmp_path: Path) -> None:
    sandbox = SandboxModel()
    sandbox.put("d/f", DATA, 0)
    answers = 0

    def failing(request: object) -> object:
        nonlocal answers
        answers += 1
        if answers < 3:
            sandbox.cuts = iter([None if answers == 1 else 10])
            return sandbox(request)  # type: ignore[arg-type]
        return Lost("refused", sent=False)

    for remote in ("d/f", "d"):
        answers = 0
        with pytest.raises(ConnectionFailed):
            FlowPlayer(failing).run(transfers.download(context(), JOB, remote, tmp_path / "x"))  # type: ignore[arg-type]
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    with pytest.raises(NotFound):
        FlowPlayer(SandboxModel()).run(transfers.download(context(), JOB, "none", tmp_path / "x"))


@QUICK
@given(CUTS)
def test_archives_over_cuts_are_whole(tmp_path: Path, cuts: list[int | None]) -> None:
    shutil.rmtree(tmp_path / "a", ignore_errors=True)
    shutil.rmtree(tmp_path / "b", ignore_errors=True)
    (tmp_path / "a" / "d").mkdir(parents=True)
    (tmp_path / "a" / "d" / "f").write_bytes(DATA)
    (tmp_path / "a" / "g").write_bytes(b"")
    sandbox = SandboxModel(cuts)
    FlowPlayer(sandbox).run(transfers.upload(context(), JOB, tmp_path / "a", "in"))
    assert {name: data for name, (data, _) in sandbox.files.items()} == {"in/d/f": DATA, "in/g": b""}
    sandbox.cuts = iter([None, *cuts])
    FlowPlayer(sandbox).run(transfers.download(context(), JOB, "in", tmp_path / "b"))
    found = {str(path.relative_to(tmp_path / "b")): path.read_bytes() for path in (tmp_path / "b").rglob("[fg]")}
    assert found == {"d/f": DATA, "g": b""}


@QUICK
@given(st.lists(st.integers(0, 12), max_size=8))
def test_an_upload_that_was_cut_sends_what_did_not_arrive(tmp_path: Path, arriving: list[int]) -> None:
    tree = {f"d{at % 2}/{at}": DATA[:at] for at in range(1, 9)}
    write(tmp_path / "tree", tree)
    (tmp_path / "tree" / "link").symlink_to("d0")
    sandbox = SandboxModel()
    sandbox.arriving = iter(arriving)
    told: list[int] = []
    flow = transfers.upload(context(), JOB, tmp_path / "tree", "in", progress=lambda done, _total: told.append(done))
    result = FlowPlayer(sandbox).run(flow)
    assert result is not None
    assert (result.files, result.bytes) == (9, sum(map(len, tree.values())))
    assert {name: data for name, (data, _) in sandbox.files.items()} == {
        f"in/{name}": data for name, data in tree.items()
    }
    assert sorted(sandbox.unpacked) == sorted(sandbox.files)
    assert set(sandbox.links) == {"in/link"}


def test_a_download_that_was_cut_asks_for_what_did_not_arrive(tmp_path: Path) -> None:
    sandbox = SandboxModel()
    tree = {f"d/[a]*?{at}": bytes([at]) * 3000 for at in range(9)}
    for name, data in tree.items():
        sandbox.put(name, data, 0)
    player = FlowPlayer(sandbox)
    sandbox.cuts = iter([None, *[5000] * 9])
    result = player.run(transfers.download(context(retry_for=1), JOB, "d", tmp_path / "got", exclude=["none"]))
    assert result is not None
    assert (result.files, result.bytes) == (9, 27_000)
    assert {f"d/{path.name}": path.read_bytes() for path in (tmp_path / "got").iterdir()} == tree
    assert player.requests[-1].path.count("exclude=") == 10


def test_where_a_file_goes(tmp_path: Path) -> None:
    sandbox = SandboxModel()
    source = tmp_path / "source"
    source.write_bytes(b"x")
    for remote in (".", "d/", "other", "d/deep"):
        FlowPlayer(sandbox).run(transfers.upload(context(), JOB, source, remote))
    assert set(sandbox.files) == {"source", "d/source", "other", "d/deep"}
    (tmp_path / "there").mkdir()
    for local in (tmp_path / "there", f"{tmp_path}/new/", tmp_path / "name"):
        FlowPlayer(sandbox).run(transfers.download(context(), JOB, "d/deep", local))
    assert all(
        path.read_bytes() == b"x" for path in (tmp_path / "there/deep", tmp_path / "new/deep", tmp_path / "name")
    )
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="neither"):
        FlowPlayer(sandbox).run(transfers.upload(context(), JOB, tmp_path / "fifo", "x"))
    assert uploads_of(None) == []
    assert uploads_of("x") == [(".", "x")]
    assert uploads_of({"in": tmp_path}) == [("in", str(tmp_path))]


NAMES = ["a", "b", "d/a", "d/e/b"]
TREE = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([b"1", b"2", b"22"]))


def write(root: Path, tree: dict[str, bytes]) -> None:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for at, (name, data) in enumerate(sorted(tree.items())):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, ns=(0, (len(data) * 1000 + data[0] * 10 + at % 1) * 1_000_000_000 + 123_456_789))


@QUICK
@given(st.lists(TREE, min_size=1, max_size=4), st.booleans(), CUTS, st.sampled_from([".", "in/it"]))
def test_a_sync_makes_the_sandbox_like_the_directory(
    tmp_path: Path, trees: list[dict[str, bytes]], hashes: bool, cuts: list[int | None], remote: str
) -> None:
    sandbox = SandboxModel(cuts)
    prefix = "" if remote == "." else f"{remote}/"
    for tree in trees:
        before = {name: data for name, (data, _) in sandbox.files.items()}
        write(tmp_path / "tree", tree)

        def again(**more: object) -> Synced:
            flow = transfers.sync(context(), JOB, tmp_path / "tree", remote, hashes=hashes, remove=True)
            result = FlowPlayer(sandbox).run(flow)
            assert result is not None
            return result

        synced = again()
        after = {name.removeprefix(prefix): data for name, (data, _) in sandbox.files.items()}
        after.pop(transfers.MANIFEST, None)
        assert after == tree
        assert set(synced.sent) >= {name for name, data in tree.items() if before.get(prefix + name) != data}
        assert len(synced.sent) + synced.kept == len(tree)
        sandbox.cuts = iter(())
        assert (again().sent, again().deleted) == ((), ())


def test_files_that_were_only_touched_are_sent_without_hashes_only(tmp_path: Path) -> None:
    sandbox = SandboxModel()
    write(tmp_path / "tree", {"a": b"1", "b": b"2"})

    def sync(hashes: bool) -> tuple[str, ...]:
        result = FlowPlayer(sandbox).run(transfers.sync(context(), JOB, tmp_path / "tree", ".", hashes=hashes))
        assert result is not None
        return result.sent

    assert sync(True) == ("a", "b")
    os.utime(tmp_path / "tree" / "a", ns=(0, 0))
    assert sync(True) == ()
    assert sync(False) == ("a",)
    sandbox.put("b", b"3", 99.0)  # the job changed it
    assert sync(True) == ("a", "b")
    sandbox.put(transfers.MANIFEST, b"{broken", 0)
    assert sync(True) == ("a", "b")


def test_a_listing_of_a_file_and_a_read_of_a_directory_say_what_to_do() -> None:
    sandbox = SandboxModel()
    sandbox.put("d/f", b"x", 0)
    with pytest.raises(RouterError, match="not a directory"):
        FlowPlayer(sandbox).run(files.listing(context(), JOB, "d/f"))
    with pytest.raises(RouterError, match="download it"):
        FlowPlayer(sandbox).run(files.read_file(context(), JOB, "d", 0, None))
