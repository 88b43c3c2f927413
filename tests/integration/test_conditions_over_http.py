"""Conditional changes of a sandbox, and uploads that are not plain files, over HTTP with many clients at once."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import requests

from tests.support.job_files import Sandbox

CLIENTS = 8
ANY, OTHER = "*", '"no"'
LONG_AGO, AHEAD = "Sun, 06 Nov 1994 08:49:37 GMT", "Fri, 01 Jan 2100 00:00:00 GMT"


def at_once(ask: Callable[[int], requests.Response]) -> list[requests.Response]:
    """The answers to all clients' requests, sent at the same moment."""
    barrier = Barrier(CLIENTS)

    def one(number: int) -> requests.Response:
        barrier.wait(30)
        return ask(number)

    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(one, range(CLIENTS)))


def tar_of(name: str, content: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


@pytest.mark.parametrize("size", [10, 300_000], ids=["small", "large"])
@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_of_many_who_create_a_file_one_wins(sandbox: Sandbox, method: str, size: int) -> None:
    answers = at_once(
        lambda number: sandbox.file("d/new", method, data=bytes([65 + number]) * size, headers={"If-None-Match": ANY})
    )
    assert Counter(answer.status_code for answer in answers) == {200: 1, 412: CLIENTS - 1}
    winner = next(number for number, answer in enumerate(answers) if answer.status_code == 200)
    assert sandbox.file("d/new").content == bytes([65 + winner]) * size
    assert sandbox.names() == ["d"]


@pytest.mark.parametrize("size", [10, 300_000], ids=["small", "large"])
def test_of_many_who_change_the_same_version_one_wins(sandbox: Sandbox, size: int) -> None:
    for turn in range(3):
        known = sandbox.file("f", "PUT", data=b"old").headers["ETag"]
        answers = at_once(
            lambda number, known=known: sandbox.file(  # type: ignore[misc]
                "f", "PUT", data=bytes([65 + number]) * size, headers={"If-Match": f'"x", {known}'}
            )
        )
        assert Counter(answer.status_code for answer in answers) == {200: 1, 412: CLIENTS - 1}, turn
        winner = next(number for number, answer in enumerate(answers) if answer.status_code == 200)
        now = sandbox.file("f")
        assert now.content == bytes([65 + winner]) * size
        assert now.headers["ETag"] == answers[winner].headers["ETag"] != known


def test_of_many_who_delete_or_change_the_same_version_one_wins(sandbox: Sandbox) -> None:
    known = sandbox.file("f", "PUT", data=b"old").headers["ETag"]
    answers = at_once(
        lambda number: sandbox.file("f", "DELETE" if number % 2 else "PUT", data=b"new", headers={"If-Match": known})
    )
    won = [answer for answer in answers if answer.ok]
    assert len(won) == 1
    assert {answer.status_code for answer in answers if not answer.ok} <= {404, 412}
    assert sandbox.file("f").status_code == (404 if won[0].status_code == 204 else 200)


def test_of_many_who_make_a_directory_one_wins(sandbox: Sandbox) -> None:
    answers = at_once(lambda _: sandbox.file("a/b?directory=1", "POST", headers={"If-None-Match": ANY}))
    assert Counter(answer.status_code for answer in answers) == {201: 1, 412: CLIENTS - 1}


def test_of_many_who_unpack_into_a_new_directory_one_wins(sandbox: Sandbox) -> None:
    answers = at_once(
        lambda number: sandbox.archive(
            "/new/place", "POST", data=tar_of("f", bytes([65 + number])), headers={"If-None-Match": ANY}
        )
    )
    assert Counter(answer.status_code for answer in answers) == {200: 1, 412: CLIENTS - 1}
    winner = next(number for number, answer in enumerate(answers) if answer.status_code == 200)
    assert sandbox.file("new/place/f").content == bytes([65 + winner])


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
@pytest.mark.parametrize(
    ("headers", "there", "missing"),
    [
        ({"If-Match": "TAG"}, True, False),
        ({"If-Match": "W/TAG"}, False, False),
        ({"If-Match": OTHER}, False, False),
        ({"If-Match": ANY}, True, False),
        ({"If-Match": "no-quotes"}, False, False),
        ({"If-None-Match": ANY}, False, True),
        ({"If-None-Match": "TAG"}, False, True),
        ({"If-None-Match": f"{OTHER}, W/TAG"}, False, True),
        ({"If-None-Match": OTHER}, True, True),
        ({"If-Unmodified-Since": LONG_AGO}, False, True),
        ({"If-Unmodified-Since": AHEAD}, True, True),
        ({"If-Unmodified-Since": "rubbish"}, True, True),
        ({"If-Modified-Since": AHEAD}, True, True),
        ({"If-Match": "TAG", "If-Unmodified-Since": LONG_AGO}, True, False),
        ({"If-Match": "TAG", "If-None-Match": "TAG"}, False, False),
    ],
)
def test_a_change_is_made_only_if_its_conditions_hold(
    sandbox: Sandbox, method: str, headers: dict[str, str], there: bool, missing: bool
) -> None:
    tag = sandbox.file("f", "PUT", data=b"old").headers["ETag"]
    headers = {name: value.replace("TAG", tag) for name, value in headers.items()}
    answer = sandbox.file("f", method, data=b"new", headers=headers)
    done = 204 if method == "DELETE" else 200
    assert answer.status_code == (done if there else 412), answer.text
    after = sandbox.file("f")
    assert after.content == b"old" if not there else after.status_code == 404 or after.content == b"new"
    absent = sandbox.file("no/g", method, data=b"new", headers=headers)
    if method == "DELETE":
        assert absent.status_code == 404  # as without conditions (RFC 9110 section 13.2.1)
    else:
        assert absent.status_code == (200 if missing else 412)
        assert ("no" in sandbox.names()) is missing
    if not there:
        assert answer.headers["X-PRouter-Error"] == "precondition_failed"


def test_a_failed_condition_is_told_before_the_body_is_asked_for(sandbox: Sandbox) -> None:
    sandbox.file("f", "PUT", data=b"old")
    head = f"PUT {sandbox.path}/file/f HTTP/1.1\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n"
    status, _ = sandbox.raw(head + "If-None-Match: *")
    assert status == 412


def test_links_and_directories_count_as_there(sandbox: Sandbox) -> None:
    etag = sandbox.file("f", "PUT", data=b"old").headers["ETag"]
    (sandbox.root / "link").symlink_to("f")
    (sandbox.root / "dangling").symlink_to("nowhere")
    (sandbox.root / "out").symlink_to("/etc/passwd")
    for name in ("link", "dangling", "out"):
        assert sandbox.file(name, "PUT", data=b"new", headers={"If-None-Match": ANY}).status_code == 412
    assert sandbox.file("dangling", "PUT", data=b"new", headers={"If-Match": OTHER}).status_code == 412
    assert sandbox.file("link", "PUT", data=b"new", headers={"If-Match": etag}).status_code == 200
    assert sandbox.file("f").content == b"old"
    sandbox.file("d?directory=1", "POST")
    assert sandbox.file("d", "PUT", data=b"new", headers={"If-None-Match": ANY}).status_code == 409
    assert sandbox.file("d", "DELETE", headers={"If-None-Match": ANY}).status_code == 412
    assert sandbox.file("d?recursive=1", "DELETE", headers={"If-Match": OTHER}).status_code == 412
    assert sandbox.file("d?directory=1", "POST", headers={"If-Match": ANY}).status_code == 200
    assert sandbox.file("e?directory=1", "POST", headers={"If-Match": ANY}).status_code == 412
    assert sandbox.archive("/d", "POST", data=tar_of("f", b""), headers={"If-Match": ANY}).status_code == 200
    assert sandbox.archive("/e", "POST", data=tar_of("f", b""), headers={"If-Match": ANY}).status_code == 412
    assert sandbox.archive("", "POST", data=tar_of("f", b""), headers={"If-None-Match": ANY}).status_code == 412
    assert sandbox.file("d", headers={"If-None-Match": ANY}).status_code == 304
    assert sandbox.file("d", headers={"If-Match": OTHER}).status_code == 412
    assert sandbox.file("d", headers={"If-Match": ANY}).status_code == 200
    assert sandbox.file("d", "DELETE", headers={"If-Match": ANY}).status_code == 409
    assert sandbox.file("d?recursive=1", "DELETE", headers={"If-Match": ANY}).status_code == 204


MTIME = 784111777
LAST = "Sun, 06 Nov 1994 08:49:37 GMT"
READS = [
    ("GET", {}, 200, None),
    ("GET", {"Range": "bytes=2-4"}, 206, "bytes 2-4/10"),
    ("GET", {"Range": "bytes=-3"}, 206, "bytes 7-9/10"),
    ("GET", {"Range": "bytes=8-"}, 206, "bytes 8-9/10"),
    ("GET", {"Range": "bytes=10-"}, 416, "bytes */10"),
    ("GET", {"Range": "bytes=-0"}, 416, "bytes */10"),
    ("GET", {"Range": "bytes=4-2"}, 200, None),
    ("GET", {"Range": "lines=1-2"}, 200, None),
    ("HEAD", {"Range": "bytes=2-4"}, 200, None),
    ("HEAD", {"Range": "bytes=99-"}, 200, None),
    ("GET", {"Range": "bytes=2-4", "If-Range": "TAG"}, 206, "bytes 2-4/10"),
    ("GET", {"Range": "bytes=2-4", "If-Range": "W/TAG"}, 200, None),
    ("GET", {"Range": "bytes=2-4", "If-Range": OTHER}, 200, None),
    ("GET", {"Range": "bytes=2-4", "If-Range": LAST}, 206, "bytes 2-4/10"),
    ("GET", {"Range": "bytes=2-4", "If-Range": "Sunday, 06-Nov-94 08:49:37 GMT"}, 206, "bytes 2-4/10"),
    ("GET", {"Range": "bytes=2-4", "If-Range": "Sun Nov  6 08:49:37 1994"}, 206, "bytes 2-4/10"),
    ("GET", {"Range": "bytes=2-4", "If-Range": AHEAD}, 200, None),
    ("GET", {"Range": "bytes=99-", "If-Range": OTHER}, 200, None),
    ("GET", {"Range": "bytes=2-4", "If-None-Match": "TAG"}, 304, None),
    ("GET", {"Range": "bytes=2-4", "If-Match": OTHER}, 412, None),
    ("GET", {"Range": "bytes=2-4", "If-Match": "TAG"}, 206, "bytes 2-4/10"),
    ("HEAD", {"If-None-Match": f"{OTHER}, W/TAG"}, 304, None),
    ("GET", {"If-None-Match": ANY}, 304, None),
    ("GET", {"If-None-Match": "nonsense"}, 200, None),
    ("GET", {"If-None-Match": OTHER, "If-Modified-Since": LAST}, 200, None),
    ("GET", {"If-Modified-Since": LAST}, 304, None),
    ("HEAD", {"If-Modified-Since": "Sunday, 06-Nov-94 08:49:37 GMT"}, 304, None),
    ("GET", {"If-Modified-Since": "Sun Nov  6 08:49:36 1994"}, 200, None),
    ("GET", {"If-Modified-Since": "nonsense"}, 200, None),
    ("HEAD", {"If-Match": OTHER}, 412, None),
    ("GET", {"If-Match": "W/TAG"}, 412, None),
    ("GET", {"If-Unmodified-Since": "Sun, 06 Nov 1994 08:49:36 GMT"}, 412, None),
    ("GET", {"If-Unmodified-Since": LAST}, 200, None),
    ("GET", {"If-Match": "TAG", "If-Unmodified-Since": "Sun, 06 Nov 1994 08:49:36 GMT"}, 200, None),
]


def test_reads_as_in_the_table(sandbox: Sandbox) -> None:
    sandbox.file("f", "PUT", data=b"0123456789")
    os.utime(sandbox.root / "f", (MTIME, MTIME))
    tag = sandbox.file("f", "HEAD").headers["ETag"]
    for method, headers, status, part in READS:
        sent = {name: value.replace("TAG", tag) for name, value in headers.items()}
        answer = sandbox.file("f", method, headers=sent)
        assert (answer.status_code, answer.headers.get("Content-Range")) == (status, part), (method, headers)
        if status in (200, 206, 304):
            assert (answer.headers["ETag"], answer.headers["Last-Modified"]) == (tag, LAST)
        if method == "HEAD" or status == 304:
            assert answer.content == b""
        elif status == 200:
            assert answer.content == b"0123456789"
        elif status == 206 and part is not None:
            first, last = map(int, part.split()[1].partition("/")[0].split("-"))
            assert answer.content == b"0123456789"[first : last + 1]
    assert sandbox.file("gone", headers={"If-Match": ANY}).status_code == 404
    assert sandbox.file("gone", headers={"If-None-Match": ANY}).status_code == 404


def test_a_malformed_if_none_match_overwrites_nothing(sandbox: Sandbox) -> None:
    sandbox.file("f", "PUT", data=b"old")
    assert sandbox.file("f", "PUT", data=b"new", headers={"If-None-Match": "all"}).status_code == 400
    assert sandbox.file("f").content == b"old"


def test_a_part_of_a_file_is_no_file(sandbox: Sandbox) -> None:
    sandbox.file("f", "PUT", data=b"x" * 400)
    for value in ("bytes 400-999/1000", "bytes 0-599/600", "bytes 0-9/*", "rubbish", ""):
        for target in ("f", "new", "new?directory=1"):
            answer = sandbox.file(target, "PUT", data=b"y" * 600, headers={"Content-Range": value})
            assert answer.status_code == 400
            assert "Content-Range" in answer.json()["detail"]
    assert (
        sandbox.archive("", "POST", data=tar_of("g", b""), headers={"Content-Range": "bytes 0-1/2"}).status_code == 400
    )
    assert sandbox.file("f").content == b"x" * 400
    assert sandbox.names() == ["f"]
    assert sandbox.file("f", "PUT", data=b"all", headers={"Range": "bytes=0-1"}).status_code == 200
    assert sandbox.file("f").content == b"all"


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip", "x-made-up"])
def test_a_coded_body_is_refused(sandbox: Sandbox, coding: str) -> None:
    coded = {"Content-Encoding": coding}
    for answer in (
        sandbox.file("f", "PUT", data=gzip.compress(b"x"), headers=coded),
        sandbox.archive("", "POST", data=gzip.compress(tar_of("g", b"")), headers=coded),
        requests.post(f"{sandbox.url}/start", data=gzip.compress(b"{}"), headers=coded, timeout=30),
        requests.post(f"{sandbox.router.url}/jobs/run", data=gzip.compress(b"{}"), headers=coded, timeout=30),
    ):
        assert (answer.status_code, answer.headers["X-PRouter-Error"]) == (415, "unsupported")
        assert "Content-Encoding" in answer.json()["detail"]
        assert answer.headers["Accept-Encoding"] == "identity"
    assert sandbox.names() == []
    assert sandbox.file("f", "PUT", data=b"x", headers={"Content-Encoding": "identity"}).status_code == 200


def test_a_form_is_refused_and_told_how_to_send(sandbox: Sandbox) -> None:
    form = {"file": ("name", b"contents")}
    for answer in (sandbox.file("f", "POST", files=form), sandbox.archive("", "POST", files=form)):
        assert answer.status_code == 415
        assert "curl --data-binary @FILE" in answer.json()["detail"]
    assert sandbox.names() == []
