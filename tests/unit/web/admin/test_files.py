"""Files and archives over HTTP: real streams, a stand-in for the agent's disk, real sockets where a cut must show."""

from __future__ import annotations

import email.parser
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote_from_bytes

import falcon.testing
import gevent
import pytest
from gevent.socket import socket

from prouter.fabric.stream import Stream
from prouter.jobs import JobRecord, Reason, State
from prouter.web.admin import responses
from prouter.web.admin.app import create_app
from tests.support.api_stand import CONNECTION, JOB, PATH, StandInRouter, StandInServer
from tests.support.loopback import Loopback, wait_for

Client = falcon.testing.TestClient
FILE = f"{PATH}/file"


@pytest.fixture
def router() -> Iterator[StandInRouter]:
    with gevent.Timeout(15):
        router = StandInRouter()
        yield router
        wait_for(lambda: router.loopback.open_streams == 0)


@pytest.fixture
def client(router: StandInRouter) -> Client:
    return Client(create_app(router, router.config, router.gate))  # type: ignore[arg-type]


@pytest.fixture
def server(router: StandInRouter) -> Iterator[StandInServer]:
    with StandInServer(router) as server:
        yield server


def received(sock: socket) -> bytes:
    """Everything up to the end of the connection, however it ends."""
    data = bytearray()
    try:
        while piece := sock.recv(65536):
            data += piece
    except ConnectionResetError:
        data += b"<reset>"
    return bytes(data)


# -- uploads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_an_upload_is_answered_empty(client: Client, router: StandInRouter, method: str) -> None:
    result = client.simulate_request(method, f"{FILE}/sub/a.txt", body=b"hello")
    assert (result.status_code, result.content) == (200, b"")
    assert result.headers["etag"] == '"new"'
    assert router.agent.files[b"sub/a.txt"] == b"hello"
    assert router.agent.targets[-1]["size"] == 5


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_an_agent_without_conditions_is_not_asked_to_ignore_them(
    client: Client, router: StandInRouter, method: str
) -> None:
    def older(stream: Stream, target: dict[str, Any]) -> None:
        router.agent.targets.append(target)
        stream.reset("unknown_kind", f"this agent knows no streams of kind {target['kind']!r}")

    router.loopback = Loopback(older)
    router.agent.files[b"f"] = b"old"
    result = client.simulate_request(method, f"{FILE}/f", body=b"new", headers={"If-Match": '"abc"'})
    assert (result.status_code, result.json["code"]) == (503, "unknown_kind")
    assert router.agent.targets[-1]["conditions"]["match"] == ['"abc"']
    assert router.agent.files[b"f"] == b"old"


NAMES = [b"a b+c%20&?#", "жаба".encode(), b"new\nline", b"\xff\xfe", b".hidden", b"x" * 255, b"a;b:c=d@e", b"\x01\x7f"]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_comes_back_the_same(server: StandInServer, router: StandInRouter, name: bytes) -> None:
    encoded = quote_from_bytes(b"dir/" + name)
    received(server.connect(f"POST {FILE}/{encoded} HTTP/1.1\nConnection: close\nContent-Length: 2", b"hi"))
    assert router.agent.files[b"dir/" + name] == b"hi"
    answer = received(server.connect(f"GET {FILE}/{encoded} HTTP/1.1\nConnection: close"))
    assert answer.endswith(b"\r\n\r\nhi")


def test_an_encoded_slash_separates_and_a_plus_does_not_turn_into_a_space(
    server: StandInServer, router: StandInRouter
) -> None:
    received(server.connect(f"POST {FILE}/a%2Fb+c?executable=1 HTTP/1.1\nConnection: close\nContent-Length: 0"))
    assert router.agent.files[b"a/b+c"] == b""
    assert router.agent.modes[b"a/b+c"] == (None, True)


def test_a_traversal_reaches_the_agent_as_it_was_meant(client: Client, router: StandInRouter) -> None:
    client.simulate_get(f"{FILE}/%2e%2e/%2Fetc/passwd")
    assert router.agent.targets[-1]["path"] == b"..//etc/passwd"
    assert client.simulate_get(f"{FILE}/100%").status_code == 400


@pytest.mark.parametrize(
    ("query", "mode"), [("", (None, False)), ("mode=640", (0o640, False)), ("mode=0755&executable=0", (0o755, False))]
)
def test_modes(client: Client, router: StandInRouter, query: str, mode: tuple[int | None, bool]) -> None:
    client.simulate_post(f"{FILE}/f", query_string=query, body=b"x")
    assert router.agent.modes[b"f"] == mode


@pytest.mark.parametrize("query", ["mode=9", "mode=1777", "mode=x", "executable=maybe"])
def test_wrong_modes_are_refused(client: Client, query: str) -> None:
    result = client.simulate_post(f"{FILE}/f", query_string=query, body=b"x")
    assert result.status_code == 400
    assert "Invalid request" in result.json["detail"]


def test_a_large_upload_arrives_whole(server: StandInServer, router: StandInRouter) -> None:
    data = os.urandom(5_000_000)
    answer = received(server.connect(f"POST {FILE}/f HTTP/1.1\nConnection: close\nContent-Length: {len(data)}", data))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert router.agent.files[b"f"] == data


def test_a_chunked_upload_needs_no_length(server: StandInServer, router: StandInRouter) -> None:
    body = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    answer = received(server.connect(f"POST {FILE}/f HTTP/1.1\nConnection: close\nTransfer-Encoding: chunked", body))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert router.agent.files[b"f"] == b"hello world"
    assert router.agent.targets[-1]["size"] is None


@pytest.mark.parametrize("framing", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
def test_an_upload_cut_by_the_client_is_reset(server: StandInServer, router: StandInRouter, framing: str) -> None:
    client = server.connect(f"POST {FILE}/f HTTP/1.1\n{framing}", b"5\r\nhello\r\n")
    wait_for(lambda: router.agent.targets)
    client.close()
    wait_for(lambda: router.agent.resets)
    assert router.agent.resets == ["upload_aborted"]
    assert b"f" not in router.agent.files


def test_a_small_upload_cut_by_the_client_never_reaches_the_agent(server: StandInServer, router: StandInRouter) -> None:
    client = server.connect(f"POST {FILE}/f HTTP/1.1\nContent-Length: 1000", b"hello")
    wait_for(lambda: server.proxy.connections)
    client.close()
    wait_for(lambda: not server.proxy.connections)
    assert router.agent.targets == []


def test_a_target_in_absolute_form_is_understood(server: StandInServer, router: StandInRouter) -> None:
    router.agent.files[b"f"] = b"x"
    assert received(server.connect(f"GET http://x:1{FILE}/f HTTP/1.1\nConnection: close")).endswith(b"\r\n\r\nx")


def test_an_upload_the_agent_refuses_midway_is_told_why(server: StandInServer, router: StandInRouter) -> None:
    router.agent.full_after = 100_000
    data = bytes(50_000_000)

    def send() -> None:
        try:
            uploader.sendall(data)
        except OSError:
            return

    uploader = server.connect(f"POST {FILE}/f HTTP/1.1\nContent-Length: {len(data)}")
    sender = gevent.spawn(send)
    assert b"HTTP/1.1 507 " in uploader.recv(65536)
    uploader.close()
    sender.join()


def test_an_upload_onto_a_directory_conflicts(client: Client) -> None:
    assert client.simulate_post(f"{FILE}/", body=b"x").status_code == 409


def test_a_client_that_expects_100_continue_hears_of_a_refusal_before_it_sends(server: StandInServer) -> None:
    head = "HTTP/1.1\nExpect: 100-continue\nConnection: close\nContent-Length: 5"
    refused = server.connect(f"POST {FILE} {head}")
    assert received(refused).startswith(b"HTTP/1.1 409 ")
    welcome = server.connect(f"POST {FILE}/f {head}")
    assert welcome.recv(100).startswith(b"HTTP/1.1 100 ")
    welcome.sendall(b"hello")
    assert received(welcome).startswith(b"HTTP/1.1 200 ")


# -- downloads --------------------------------------------------------------------------------------------------


def test_a_download_is_described_in_full(client: Client, router: StandInRouter) -> None:
    router.agent.files[b"f"] = b"0123456789"
    result = client.simulate_get(f"{FILE}/f")
    assert result.content == b"0123456789"
    headers = result.headers
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-length"] == "10"
    assert headers["accept-ranges"] == "bytes"
    assert headers["last-modified"] == "Fri, 14 Jul 2017 02:40:00 GMT"
    assert headers["cache-control"] == "no-store, must-revalidate"
    assert client.simulate_get(f"{FILE}/f", headers={"If-None-Match": headers["etag"]}).status_code == 304
    assert client.simulate_get(f"{FILE}/f", headers={"If-Match": '"other"'}).status_code == 412
    head = client.simulate_head(f"{FILE}/f")
    assert head.content == b""
    assert {name: head.headers[name] for name in ("content-length", "etag", "content-type")} == {
        name: headers[name] for name in ("content-length", "etag", "content-type")
    }


def test_a_large_download_arrives_whole(client: Client, router: StandInRouter) -> None:
    router.agent.files[b"f"] = data = os.urandom(5_000_000)
    assert client.simulate_get(f"{FILE}/f").content == data


def test_an_empty_file_is_a_file(client: Client, router: StandInRouter) -> None:
    router.agent.files[b"f"] = b""
    result = client.simulate_get(f"{FILE}/f")
    assert (result.status_code, result.headers["content-length"], result.content) == (200, "0", b"")


def test_one_range(client: Client, router: StandInRouter) -> None:
    router.agent.files[b"f"] = b"0123456789"
    result = client.simulate_get(f"{FILE}/f", headers={"Range": "bytes=2-4"})
    assert (result.status_code, result.content) == (206, b"234")
    assert result.headers["content-range"] == "bytes 2-4/10"
    assert result.headers["content-length"] == "3"
    etag = result.headers["etag"]
    result = client.simulate_get(f"{FILE}/f", headers={"Range": "bytes=2-4", "If-Range": etag})
    assert result.status_code == 206
    result = client.simulate_get(f"{FILE}/f", headers={"Range": "bytes=2-4", "If-Range": '"other"'})
    assert (result.status_code, result.content) == (200, b"0123456789")


def test_many_ranges_come_in_parts(client: Client, router: StandInRouter) -> None:
    router.agent.files[b"f"] = data = os.urandom(1_000_000)
    result = client.simulate_get(f"{FILE}/f", headers={"Range": "bytes=5-9,500000-899999,-3"})
    assert result.status_code == 206
    assert int(result.headers["content-length"]) == len(result.content)
    head = f"Content-Type: {result.headers['content-type']}\r\n\r\n".encode()
    parts = email.parser.BytesParser().parsebytes(head + result.content).get_payload()
    assert isinstance(parts, list)
    ranges = ["bytes 5-9/1000000", "bytes 500000-899999/1000000", "bytes 999997-999999/1000000"]
    assert [part["Content-Range"] for part in parts] == ranges  # type: ignore[index]
    for piece in (data[5:10], data[500000:900000], data[-3:]):
        assert piece in result.content


def test_a_range_outside_is_416_with_the_size(client: Client, router: StandInRouter) -> None:
    router.agent.files[b"f"] = b"0123456789"
    result = client.simulate_get(f"{FILE}/f", headers={"Range": "bytes=10-"})
    assert result.status_code == 416
    assert result.headers["content-range"] == "bytes */10"
    assert result.json["code"] == "range_not_satisfiable"


@pytest.mark.parametrize("code", ["path_lost", "agent_gone"])
def test_a_download_that_breaks_is_visibly_broken(server: StandInServer, router: StandInRouter, code: str) -> None:
    router.agent.files[b"f"] = bytes(1_000_000)
    router.agent.cut_after, router.agent.cut_code = 300_000, code
    answer = received(server.connect(f"GET {FILE}/f HTTP/1.1\nConnection: close"))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"<reset>")
    assert len(answer) < 400_000


def test_a_client_that_leaves_frees_the_stream(server: StandInServer, router: StandInRouter) -> None:
    router.agent.files[b"f"] = bytes(40_000_000)
    client = server.connect(f"GET {FILE}/f HTTP/1.1", receive_buffer=4096)
    client.recv(1000)
    client.close()
    wait_for(lambda: router.agent.resets)
    assert router.agent.resets == ["client_gone"]


def test_remove_deletes_after_the_last_byte_only(server: StandInServer, router: StandInRouter) -> None:
    router.agent.files[b"f"] = bytes(40_000_000)
    client = server.connect(f"GET {FILE}/f?remove=1 HTTP/1.1", receive_buffer=4096)
    client.recv(1000)
    client.close()
    wait_for(lambda: router.agent.resets)
    assert router.agent.removed == []
    assert len(received(server.connect(f"GET {FILE}/f?remove=1 HTTP/1.1\nConnection: close"))) > 40_000_000
    wait_for(lambda: router.agent.removed == [b"f"])


def test_remove_waits_for_a_client_that_has_not_read_what_was_sent(
    server: StandInServer, router: StandInRouter
) -> None:
    router.agent.files[b"f"] = bytes(400_000)
    client = server.connect(f"GET {FILE}/f?remove=1 HTTP/1.1", receive_buffer=4096)
    client.recv(1000)
    wait_for(lambda: bool(router.loopback.open_streams))
    client.close()
    wait_for(lambda: router.agent.resets)
    assert router.agent.removed == []


def test_remove_counts_a_client_that_leaves_with_the_last_byte(server: StandInServer, router: StandInRouter) -> None:
    for number in range(20):
        router.agent.files[b"f"] = bytes(100)
        client = server.connect(f"GET {FILE}/f?remove=1 HTTP/1.1")
        answer = b""
        while not answer.endswith(bytes(100)):
            answer += client.recv(65536)
        client.close()
        wait_for(lambda number=number: len(router.agent.removed) == number + 1)  # type: ignore[misc]


@pytest.mark.parametrize("target", ["file/", "archive?format=zip"])
def test_head_claims_no_length_that_get_would_not_have(server: StandInServer, target: str) -> None:
    answer = received(server.connect(f"HEAD {PATH}/{target} HTTP/1.1\nConnection: close"))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"content-length" not in answer.lower()


def test_a_missing_file_is_404(client: Client) -> None:
    result = client.simulate_get(f"{FILE}/none")
    assert result.status_code == 404
    assert result.json["detail"] == "file 'none' is not found"


def test_a_directory_is_listed(client: Client, router: StandInRouter) -> None:
    router.agent.files |= {b"a": b"xyz", b"dir": None, b"\xff": b""}
    result = client.simulate_get(f"{FILE}/")
    assert result.headers["content-type"] == "application/json"
    responses.Listing.model_validate(result.json)
    assert [(entry["name"], entry["type"]) for entry in result.json["entries"]] == [
        ("a", "file"),
        ("dir", "dir"),
        ("\udcff", "file"),
    ]
    assert client.simulate_head(FILE).content == b""


def test_an_empty_directory_is_listed(client: Client) -> None:
    assert client.simulate_get(FILE).json == {"path": "", "entries": []}


def test_a_long_listing_is_one_document(client: Client, router: StandInRouter) -> None:
    router.agent.files |= {b"%05d" % number: b"" for number in range(6000)}
    entries = client.simulate_get(FILE).json["entries"]
    assert [entry["name"] for entry in entries] == [f"{number:05}" for number in range(6000)]


def test_delete_and_make_a_directory(client: Client, router: StandInRouter) -> None:
    assert client.simulate_post(f"{FILE}/d", query_string="directory=1").status_code == 201
    assert client.simulate_put(f"{FILE}/d", query_string="directory=1").status_code == 200
    assert router.agent.files[b"d"] is None
    result = client.simulate_delete(f"{FILE}/d", query_string="recursive=1")
    assert (result.status_code, result.content) == (204, b"")
    assert router.agent.targets[-1]["recursive"] is True
    assert client.simulate_delete(f"{FILE}/d").status_code == 404


# -- archives ---------------------------------------------------------------------------------------------------


def test_an_archive_is_packed_as_asked(client: Client, router: StandInRouter) -> None:
    result = client.simulate_get(f"{PATH}/archive?include=*.py&include=a,b&exclude=x*")
    assert result.content == b"an archive"
    assert result.headers["content-length"] == "10"
    assert result.headers["content-type"] == "application/x-tar"
    target = router.agent.targets[-1]
    assert (target["include"], target["exclude"], target["path"]) == (["*.py", "a,b"], ["x*"], b"")
    result = client.simulate_get(f"{PATH}/archive/sub%20dir?compress=1")
    assert "content-length" not in result.headers
    assert (router.agent.targets[-1]["format"], router.agent.targets[-1]["path"]) == ("tar.gz", b"sub dir")
    assert client.simulate_get(f"{PATH}/archive?format=zip").headers["content-type"] == "application/zip"
    assert client.simulate_get(f"{PATH}/archive?format=rar").status_code == 400
    assert client.simulate_head(f"{PATH}/archive").headers["content-length"] == "10"


def test_an_archive_is_unpacked(client: Client, router: StandInRouter) -> None:
    result = client.simulate_post(f"{PATH}/archive", body=b"tar bytes")
    assert (result.status_code, result.content) == (200, b"")
    assert router.agent.archive == b"tar bytes"


# -- where the sandbox is ---------------------------------------------------------------------------------------


def test_unknown_connections_and_jobs(client: Client) -> None:
    result = client.simulate_get(f"/jobs/none/{JOB}/file/f")
    assert (result.status_code, result.json["detail"]) == (404, "connection 'none' is not found")
    result = client.simulate_post(f"/jobs/{CONNECTION}/none/file/f", body=b"x")
    assert (result.status_code, result.json["detail"]) == (404, "job 'none' is not found")


def test_a_removed_job_has_no_files(client: Client, router: StandInRouter) -> None:
    router.job_route.record = JobRecord(JOB, CONNECTION, "a job", State.CLOSED)
    result = client.simulate_get(f"{FILE}/f")
    assert result.status_code == 404
    assert f"job '{JOB}' is not found" in result.json["detail"]
    router.job_route.record = JobRecord(JOB, CONNECTION, "a job", State.FINISHED, reason=Reason.AGENT_LOST)
    assert client.simulate_get(f"{FILE}/f").json["code"] == "agent_lost"


def test_an_agent_that_is_away_is_waited_for_and_then_503(client: Client, router: StandInRouter) -> None:
    router.job_route.up = False
    result = client.simulate_get(f"{FILE}/f")
    assert (result.status_code, result.json["code"]) == (503, "agent_unavailable")
    assert int(result.headers["retry-after"]) >= 1


def test_an_agent_that_comes_back_in_time_serves(client: Client, router: StandInRouter) -> None:
    router.config = router.config.model_copy(update={"control": router.config.control.model_copy(update={"hold": 5.0})})
    router.agent.files[b"f"] = b"x"
    router.job_route.up = False

    def back() -> None:
        wait_for(lambda: router.job_route.waiters)
        router.job_route.up = True
        router.job_route.changed()

    gevent.spawn(back)
    assert client.simulate_get(f"{FILE}/f").content == b"x"
