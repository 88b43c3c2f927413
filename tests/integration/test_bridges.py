"""Bridges between a job's WebSocket and another server's, through the whole chain."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import requests
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve
from websockets.utils import accept_key

from tests.support.processes import Agent, Router, start_agent, start_router, wait_until
from tests.support.programs import needed
from tests.support.websocket_frames import CLOSE, frame


class Peer:
    """The other server, in this process: hands each WebSocket that comes to the test.

    Attributes:
        url: where it is reached.
    """

    def __init__(self, scheme: str, port: int) -> None:
        self.url = f"{scheme}://localhost:{port}/here?a=1"
        self.arrived: Queue[ServerConnection] = Queue()

    def handle(self, connection: ServerConnection) -> None:
        self.arrived.put(connection)
        connection.close_timeout = 2
        connection.protocol.max_message_size = None
        connection.recv_events_thread.join()

    def next(self) -> ServerConnection:
        return self.arrived.get(timeout=15)


@contextmanager
def peer_server(**options: Any) -> Iterator[Peer]:
    holder: list[Peer] = []
    with serve(
        lambda connection: holder[0].handle(connection),
        "localhost",
        0,
        ping_interval=None,
        max_size=None,
        close_timeout=2,
        **options,
    ) as server:
        peer = Peer("wss" if "ssl" in options else "ws", server.socket.getsockname()[1])
        holder.append(peer)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield peer
        finally:
            while not peer.arrived.empty():
                peer.arrived.get().close()
            server.shutdown()
            thread.join()


@pytest.fixture
def peer() -> Iterator[Peer]:
    with peer_server() as found:
        yield found


@pytest.fixture(scope="module")
def job(router: Router, agent: Agent, jobs: Path) -> str:
    return router.serve(agent.uid, jobs / "websocket_server.py")


def bridge(router: Router, job: str, path: str, url: str) -> str:
    """Make a bridge; its uid."""
    answer = router.post(f"{job}/wsconnect{path}", {"url": url})
    assert (answer.status_code, answer.content) == (200, b""), answer.text
    return answer.headers["X-PRouter-Bridge"]


def listed(router: Router, job: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = router.get(job + "/wsconnect").json()["bridges"]
    return found


def ended(router: Router, job: str, path: str) -> dict[str, Any]:
    """How the job's WebSocket at `path` ended."""
    return wait_until(
        lambda: next((end for end in router.get(job + "/http/seen").json()["ended"] if end["path"] == path), {}),
        what=f"the end of {path}",
    )


@pytest.mark.parametrize(
    "message",
    ["text ✓", "", b"", b"\x00\xff" * 5, "long " * 100_000, bytes(range(256)) * 65536],
    ids=["text", "empty text", "empty bytes", "bytes", "500 KB", "16 MiB"],
)
def test_messages_pass_both_ways_as_they_are(router: Router, job: str, peer: Peer, message: str | bytes) -> None:
    bridge(router, job, "/echo", peer.url)
    ws = peer.next()
    assert ws.request is not None
    assert ws.request.path == "/here?a=1"
    for _ in range(2):
        ws.send(message)
        assert ws.recv(timeout=20) == message
    ws.close()


def test_the_job_may_speak_first(router: Router, job: str, peer: Peer) -> None:
    bridge(router, job, "/greet", peer.url)
    ws = peer.next()
    assert [ws.recv(timeout=10) for _ in range(4)] == ["hello ✓", "", b"\x00\xff", b""]
    ws.close()


def test_the_requests_own_headers_reach_the_job(router: Router, job: str, peer: Peer) -> None:
    passing = {"Authorization": "token t", "Cookie": "a=b; c=d", "X-Custom": "caf\u00e9"}
    kept = {"X-Forwarded-For": "1.2.3.4", "X-Real-IP": "1.2.3.4", "If-Match": "*", "Connection": "X-Hop", "X-Hop": "1"}
    answer = router.post(f"{job}/wsconnect/headers?q=1", {"url": peer.url}, headers={**passing, **kept})
    assert answer.status_code == 200, answer.text
    ws = peer.next()
    assert ws.request is not None
    assert passing["Authorization"] not in ws.request.headers.values()
    seen = [(name.lower(), value) for name, value in json.loads(ws.recv(timeout=10))]
    assert [pair for name, value in passing.items() if (pair := (name.lower(), value)) in seen] == [
        (name.lower(), value) for name, value in passing.items()
    ]
    names = [name for name, _ in seen]
    assert sorted(names) == sorted(set(names))
    assert not {"x-forwarded-for", "x-real-ip", "if-match", "x-hop", "content-type", "content-length"} & set(names)
    ws.close()


def test_fragments_pass_as_fragments(router: Router, job: str, peer: Peer) -> None:
    bridge(router, job, "/stream", peer.url)
    ws = peer.next()
    for message in (["a", "b", "", "c"], [b"1", b"2" * 100_000, b"3"]):
        ws.send(message)
        assert [part for part in ws.recv_streaming() if part] == [part for part in message if part]
    ws.close()


def test_pings_are_answered_on_the_way(router: Router, job: str, peer: Peer) -> None:
    bridge(router, job, "/silent", peer.url)
    ws = peer.next()
    assert ws.ping(b"there?").wait(10)
    ws.close()


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "bye"), (3001, "käse"), (4999, "r" * 123)])
def test_the_peers_close_reaches_the_job(router: Router, job: str, peer: Peer, code: int, reason: str) -> None:
    path = f"/silent?{uuid.uuid4().hex}"
    bridge(router, job, path, peer.url)
    peer.next().close(code, reason)
    end = ended(router, job, path)
    assert (end["code"], end["reason"]) == (code, reason)
    wait_until(lambda: not listed(router, job))


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1011, "broke"), (4000, "enough")])
def test_the_jobs_close_reaches_the_peer(router: Router, job: str, peer: Peer, code: int, reason: str) -> None:
    bridge(router, job, f"/close?code={code}&reason={reason}", peer.url)
    ws = peer.next()
    ws.send("now")
    with pytest.raises(ConnectionClosed) as caught:
        ws.recv(timeout=10)
    assert caught.value.rcvd is not None
    assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (code, reason)
    wait_until(lambda: not listed(router, job))


def test_a_server_that_closes_but_stays_connected_is_left(router: Router, job: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        path = f"/echo?{uuid.uuid4().hex}"
        bridge(router, job, path, f"ws://127.0.0.1:{listener.getsockname()[1]}/")
        listener.settimeout(15)
        connection, _ = listener.accept()
        with connection:
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(65536)
            key = next(line[19:] for line in head.decode().split("\r\n") if line.startswith("Sec-WebSocket-Key: "))
            answer = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept_key(key)}"
            connection.sendall(f"HTTP/1.1 101 Switching Protocols\r\n{answer}\r\n\r\n".encode())
            connection.sendall(frame(CLOSE, (4001).to_bytes(2, "big") + b"bye", masked=False))
            end = ended(router, job, path)
            assert (end["code"], end["reason"]) == (4001, "bye")
            wait_until(lambda: not listed(router, job))


def test_a_connection_that_breaks_closes_the_other_side(router: Router, job: str, peer: Peer) -> None:
    bridge(router, job, "/drop", peer.url)
    ws = peer.next()
    ws.send("now")
    with pytest.raises(ConnectionClosed) as caught:
        ws.recv(timeout=10)
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1001
    path = f"/silent?{uuid.uuid4().hex}"
    bridge(router, job, path, peer.url)
    peer.next().socket.shutdown(2)
    assert ended(router, job, path)["code"] == 1001


def test_bridges_are_listed_and_ended(router: Router, job: str, peer: Peer) -> None:
    paths = [f"/silent?{number}{uuid.uuid4().hex}" for number in range(4)]
    uids = [bridge(router, job, path, peer.url) for path in paths]
    sockets = [peer.next() for _ in paths]
    wait_until(lambda: len(listed(router, job)) == 4)
    found = listed(router, job)
    assert {entry["uid"]: entry["path"] for entry in found} == dict.fromkeys(uids, "/silent?***")
    assert {entry["url"] for entry in found} == {peer.url.replace("?a=1", "?***")}
    assert {entry["job"] for entry in found} == {job.rpartition("/")[2]}
    assert all(entry["since"].endswith("Z") for entry in found)
    assert requests.delete(f"{router.url}{job}/wsconnect/{uids[0]}", timeout=30).status_code == 204
    assert {entry["uid"] for entry in listed(router, job)} == set(uids[1:])
    assert ended(router, job, paths[0])["code"] == 1001
    assert requests.delete(f"{router.url}{job}/wsconnect/{uids[0]}", timeout=30).status_code == 404
    for ws in sockets:
        ws.close()
    wait_until(lambda: not listed(router, job))


def test_a_url_that_does_not_answer_closes_the_jobs_side(router: Router, job: str) -> None:
    with peer_server(process_request=lambda connection, _: connection.respond(HTTPStatus.NOT_FOUND, "")) as plain:
        for url, words in (("ws://127.0.0.1:9/x", "refused"), (plain.url.partition("?")[0], "404")):
            path = f"/silent?{uuid.uuid4().hex}"
            bridge(router, job, path, url)
            end = ended(router, job, path)
            assert end["code"] == 1014
            assert url in end["reason"]
            assert words in end["reason"]
    wait_until(lambda: not listed(router, job))


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x",
        "",
        "ws:/x",
        "ws://",
        "http:///x",
        "ws://[bad",
        "ws://h:99999/",
        "ws://h/#f",
        "ws://user@h/",
        "ws://h/a b",
        "ws://h/x\r\n2026-01-01T00:00:00.000Z CRITICAL prouter.broker[1] event=forged",
        "ws://h/\u2028x",
        "http://h\n/",
        "ws://h/\x1b[2J",
    ],
)
def test_other_urls_are_refused(router: Router, job: str, url: str) -> None:
    answer = router.post(f"{job}/wsconnect/echo", {"url": url})
    assert answer.status_code == 400
    assert "Invalid request: url must be a whole ws://, wss://, http:// or https:// URL" in answer.json()["detail"]
    assert "event=forged" not in router.log.read_text()


def test_http_urls_are_websockets_too(router: Router, job: str, peer: Peer) -> None:
    bridge(router, job, "/echo", peer.url.replace("ws://", "HTTP://"))
    with peer.next() as ws:
        ws.send("hello")
        assert ws.recv(timeout=10) == "hello"


def test_secrets_of_a_url_are_in_no_log_list_or_error(router: Router, job: str, peer: Peer) -> None:
    secret = peer.url.replace("ws://", "ws://user:s3cret@").replace("a=1", "token=s3cret")
    bridge(router, job, "/echo", secret)
    with peer.next() as ws:
        assert ws.request.headers["Authorization"].startswith("Basic ")
        assert ws.request.path.endswith("?token=s3cret")
        found = listed(router, job)
        assert [entry["url"] for entry in found] == [
            secret.replace("user:s3cret", "***").replace("token=s3cret", "***")
        ]
    path = f"/silent?{uuid.uuid4().hex}"
    bridge(router, job, path, "ws://user:s3cret@127.0.0.1:9/x?token=s3cret")
    assert "ws://***@127.0.0.1:9/x?***" in ended(router, job, path)["reason"]
    refused = router.post(f"{job}/wsconnect/echo", {"url": "ws://user:s3cret@h/?token=s3cret#f"})
    assert refused.status_code == 400
    assert "s3cret" not in refused.text
    assert "event=bridge_failed" in router.log.read_text()
    assert "s3cret" not in router.log.read_text()


def test_a_job_without_a_websocket_is_told(router: Router, agent: Agent, jobs: Path, peer: Peer) -> None:
    plain = router.serve(agent.uid, jobs / "fast_server.py")
    answer = router.post(f"{plain}/wsconnect/", {"url": peer.url})
    assert answer.status_code == 502
    assert "HTTP 200" in answer.json()["detail"]
    quiet = router.create(agent.uid)
    assert router.post(f"{quiet}/wsconnect/x", {"url": peer.url}).status_code == 409
    router.start(quiet, ["sleep", "60"], port_expected_count=0)
    answer = router.post(f"{quiet}/wsconnect/x", {"url": peer.url})
    assert answer.status_code == 502
    assert "has no HTTP server" in answer.json()["detail"]
    router.post(f"{quiet}/stop", {"grace": 0})
    assert router.post(f"{quiet}/wsconnect/x", {"url": peer.url}).status_code == 409
    router.post(f"{quiet}/remove")
    assert router.post(f"{quiet}/wsconnect/x", {"url": peer.url}).status_code == 404
    assert peer.arrived.empty()


def test_a_bridge_ends_with_its_job(router: Router, agent: Agent, jobs: Path, peer: Peer) -> None:
    mortal = router.serve(agent.uid, jobs / "websocket_server.py")
    bridge(router, mortal, "/silent", peer.url)
    ws = peer.next()
    router.post(mortal + "/signal", {"signal": "KILL"})
    with pytest.raises(ConnectionClosed):
        ws.recv(timeout=5)
    wait_until(lambda: not listed(router, mortal))


def certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, and its key."""
    key, cert = directory / "key.pem", directory / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", *subject]
    subprocess.run([*made, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return cert, key


@needed("openssl")
def test_a_wss_url_needs_a_trusted_certificate(
    router: Router, job: str, launch: Callable[..., Any], jobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with peer_server(ssl=context) as peer:
        path = f"/silent?{uuid.uuid4().hex}"
        bridge(router, job, path, peer.url)
        end = ended(router, job, path)
        assert end["code"] == 1014
        assert "CERTIFICATE_VERIFY_FAILED" in end["reason"]
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        trusting = launch(start_router, workers=1)
        agent = launch(start_agent, trusting)
        bridge(trusting, trusting.serve(agent.uid, jobs / "websocket_server.py"), "/echo", peer.url)
        ws = peer.next()
        ws.send("secret")
        assert ws.recv(timeout=10) == "secret"
        ws.close()


def test_workers_that_are_replaced_wait_for_their_bridges(launch: Callable[..., Any], jobs: Path, peer: Peer) -> None:
    router = launch(start_router, workers=1, control__drain_timeout=4)
    agent = launch(start_agent, router)
    job = router.serve(agent.uid, jobs / "websocket_server.py")
    for path in ("/echo", "/echo?stays"):
        bridge(router, job, path, peer.url)
    first, second = peer.next(), peer.next()
    (uid,) = (entry["uid"] for entry in listed(router, job) if entry["path"] == "/echo")
    os.kill(router.child("gunicorn"), signal.SIGHUP)
    wait_until(lambda: router.log.read_text().count("event=broker_linked") == 2)
    for ws in (first, second):
        ws.send("still here")
        assert ws.recv(timeout=5) == "still here"
    assert len(listed(router, job)) == 2
    assert requests.delete(f"{router.url}{job}/wsconnect/{uid}", timeout=30).status_code == 204
    with pytest.raises(ConnectionClosed):
        first.recv(timeout=5)
    with pytest.raises(ConnectionClosed) as caught:
        second.recv(timeout=10)
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1001
    wait_until(lambda: not listed(router, job))
