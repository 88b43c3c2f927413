"""The shipped nginx configuration under the real nginx, in front of a plain job server and of a whole router."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import websockets.sync.client

from tests.bench.client import Answer, Connection
from tests.bench.nginx import Nginx, render
from tests.support.ports import free_port
from tests.support.processes import Process, start_agent, start_router, wait_until
from tests.support.programs import needed

pytestmark = needed("nginx")

JOBS = Path(__file__).parents[1] / "jobs"
CLIENT = "127.0.0.5"
"""A client address that is not nginx's own."""
SIZE = 64 << 20


@dataclass(frozen=True)
class Site:
    """A running nginx: its port, where the job server is below it, and the job's uid (empty for a plain server)."""

    port: int
    prefix: str
    job: str = ""

    @contextlib.contextmanager
    def connect(self, source: str = "127.0.0.1") -> Iterator[Connection]:
        """A connection from that address."""
        with contextlib.closing(Connection(("127.0.0.1", self.port), source=source)) as http:
            yield http

    def echo(self, headers: dict[str, str], target: str = "/echo", source: str = "127.0.0.1") -> dict[str, list[str]]:
        """The headers that the job saw, by lower-case name."""
        with self.connect(source) as http:
            seen = http.request("GET", self.prefix + target, headers=headers).json()
        found: dict[str, list[str]] = {}
        for name, value in seen["headers"]:
            found.setdefault(name.lower(), []).append(value)
        return found


@pytest.fixture(scope="module")
def cleanup() -> Iterator[contextlib.ExitStack]:
    """Ends everything that the module started, in reverse."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def place(cleanup: contextlib.ExitStack) -> Path:
    """A short directory for the module."""
    path = Path(tempfile.mkdtemp(prefix="prn-"))
    cleanup.callback(shutil.rmtree, path, ignore_errors=True)
    return path


def start_job(cleanup: contextlib.ExitStack, place: Path, script: str, *arguments: str) -> str:
    """Start a job server outside any router; where it listens."""
    log = place / f"{script}-{len(list(place.iterdir()))}.log"
    process = Process([sys.executable, str(JOBS / f"{script}.py"), *arguments], log)
    cleanup.callback(process.stop)
    return process.wait_line(r"^listening (\S+)$")[1]


def start_nginx(cleanup: contextlib.ExitStack, place: Path, name: str, upstream: str) -> int:
    """Start nginx before `upstream`; its port."""
    port = free_port()
    nginx = Nginx(place / name, upstream, port)
    cleanup.callback(nginx.close)
    return port


@pytest.fixture(scope="module")
def plain_tcp(cleanup: contextlib.ExitStack, place: Path) -> Site:
    return Site(start_nginx(cleanup, place, "plain_tcp", start_job(cleanup, place, "fast_server", "0")), "")


@pytest.fixture(scope="module")
def plain_unix(cleanup: contextlib.ExitStack, place: Path) -> Site:
    path = start_job(cleanup, place, "fast_server", "--unix", str(place / "job.sock"))
    return Site(start_nginx(cleanup, place, "plain_unix", f"unix:{path}"), "")


@pytest.fixture(scope="module")
def routed(cleanup: contextlib.ExitStack, place: Path) -> tuple[str, Path, str]:
    """A router that trusts nginx, on TCP and on a unix socket, with a job: its address, socket, and the job's path."""
    unix = place / "control.sock"
    proxies = ("127.0.0.1/32", "unix")
    router = start_router(
        place / "router",
        control__unix=str(unix),
        control__trusted_proxies=proxies,
        control__job_domain="jobs.example.org",
        control__hosts=["prouter.example.org"],
    )
    cleanup.callback(router.stop)
    agent = start_agent(place / "agent", router)
    cleanup.callback(agent.stop)
    return router.url.removeprefix("http://"), unix, router.serve(agent.uid, JOBS / "fast_server.py")


@pytest.fixture(scope="module")
def router_tcp(cleanup: contextlib.ExitStack, place: Path, routed: tuple[str, Path, str]) -> Site:
    address, _, job = routed
    return Site(start_nginx(cleanup, place, "router_tcp", address), f"{job}/http", job.rpartition("/")[2])


@pytest.fixture(scope="module")
def router_unix(cleanup: contextlib.ExitStack, place: Path, routed: tuple[str, Path, str]) -> Site:
    _, unix, job = routed
    return Site(start_nginx(cleanup, place, "router_unix", f"unix:{unix}"), f"{job}/http", job.rpartition("/")[2])


@pytest.fixture(params=["plain_tcp", "plain_unix", "router_tcp", "router_unix"])
def site(request: pytest.FixtureRequest) -> Site:
    """Each kind of upstream."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Site)
    return found


@pytest.fixture(params=["router_tcp", "router_unix"])
def router_site(request: pytest.FixtureRequest) -> Site:
    """The real router, both ways."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Site)
    return found


def test_get_reaches_the_job(site: Site) -> None:
    with site.connect() as http:
        for _ in range(3):
            assert http.request("GET", f"{site.prefix}/").body == b"x" * 100


def test_request_target_and_headers_arrive_as_sent(site: Site) -> None:
    target = "/echo//a//b%2f..%2E/c?x=1&x=2&y=%20%2F"
    with site.connect() as http:
        seen = http.request("GET", site.prefix + target, headers={"X_Under_Score": "1"}).json()
    assert seen["line"] == f"GET {target} HTTP/1.1"
    assert ["X_Under_Score", "1"] in seen["headers"]


@pytest.mark.parametrize("chunked", [False, True])
def test_upload_of_64_mib_arrives(site: Site, chunked: bool) -> None:
    piece = bytes(1 << 20)
    block = b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece
    framing = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(SIZE)}
    with site.connect() as http:
        http.send_head("POST", f"{site.prefix}/sink", framing)
        for _ in range(SIZE // len(piece)):
            http.sock.sendall(block)
        http.sock.sendall(b"0\r\n\r\n" if chunked else b"")
        status, headers = http.read_head()
        body = b"".join(bytes(part) for part in http.read_body(headers))
    assert (status, body) == (200, b"%d" % SIZE)


def test_bodies_pass_both_ways_before_they_are_complete(site: Site) -> None:
    with site.connect() as http:
        http.send_head("POST", f"{site.prefix}/copy", {"Content-Length": "20"})
        http.sock.sendall(b"first half")
        status, headers = http.read_head()
        parts = http.read_body(headers)
        assert bytes(next(parts)) == b"first half"
        http.sock.sendall(b"other half")
        assert (status, b"".join(bytes(part) for part in parts)) == (200, b"other half")


def test_download_of_64_mib_arrives(site: Site) -> None:
    with site.connect() as http:
        for kind in ("bytes", "chunked"):
            http.send_head("GET", f"{site.prefix}/{kind}/{SIZE}", {})
            assert http.count_body(http.read_head()[1]) == SIZE


def test_events_arrive_when_they_are_sent(site: Site) -> None:
    delays = []
    with site.connect() as http:
        http.send_head("GET", f"{site.prefix}/sse?interval_ms=20&count=20", {})
        for part in http.read_body(http.read_head()[1]):
            arrived = time.monotonic_ns()
            delays += [arrived - int(line[6:]) for line in bytes(part).splitlines() if line.startswith(b"data: ")]
    assert len(delays) == 20
    assert statistics.median(delays) < 100e6


def test_websocket_echoes(site: Site) -> None:
    url = f"ws://127.0.0.1:{site.port}{site.prefix}/ws"
    with websockets.sync.client.connect(url, subprotocols=[websockets.Subprotocol("chat")], max_size=None) as ws:
        assert ws.subprotocol == "chat"
        for message in ("text ✓", b"binary\0", b"m" * 300_000):
            ws.send(message)
            assert ws.recv(timeout=10) == message


def test_job_sees_the_clients_address_and_no_forgery(site: Site) -> None:
    forged = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Prefix": "/evil", "Forwarded": "for=6.6.6.6"}
    seen = site.echo({**forged, "X-Forwarded-Proto": "gopher", "X-Forwarded-Host": "evil"}, source=CLIENT)
    assert seen["x-forwarded-for"][0].split(",")[0].strip() == CLIENT
    assert seen["x-forwarded-proto"] == ["http"]
    assert seen["x-forwarded-host"] == [f"127.0.0.1:{site.port}"]
    assert "6.6.6.6" not in json.dumps(seen)
    assert "evil" not in json.dumps(seen)


def test_shutdown_and_metrics_are_for_this_machine(site: Site) -> None:
    with site.connect(CLIENT) as http:
        for target in ("/shutdown", "/shutdown/", "//shutdown", "/metrics"):
            assert http.request("POST", target).status == 403


@pytest.fixture(scope="module")
def password_line() -> str:
    """A line of the password file, made as docs/deployment-nginx.md says."""
    openssl = ["openssl", "passwd", "-apr1", "s3cret"]
    digest = subprocess.run(openssl, check=True, capture_output=True, text=True).stdout.strip()
    return f"alice:{digest}\n"


@pytest.fixture(scope="module")
def closed(
    cleanup: contextlib.ExitStack, place: Path, routed: tuple[str, Path, str], password_line: str
) -> tuple[Site, Site]:
    """The configuration as it is shipped: with a password file, and without any."""
    address, _, job = routed
    sites = []
    for name, users in (("closed", password_line), ("empty", "")):
        port = free_port()
        cleanup.callback(Nginx(place / name, address, port, users=users).close)
        sites.append(Site(port, f"{job}/http", job.rpartition("/")[2]))
    return sites[0], sites[1]


WITH_PASSWORD = {"Authorization": "Basic " + base64.b64encode(b"alice:s3cret").decode()}
OPENSSL = needed("openssl")


@OPENSSL
@pytest.mark.parametrize("host", ["127.0.0.1", "prouter.example.org", "JOB.jobs.example.org", "elsewhere"])
def test_nobody_gets_in_without_a_password(closed: tuple[Site, Site], host: str) -> None:
    for site, status in ((closed[0], 401), (closed[1], 403)):
        with site.connect(CLIENT) as http:
            http.host = host.replace("JOB", site.job)
            for method, target in (
                ("GET", "/"),
                ("POST", "/jobs/run"),
                ("GET", f"{site.prefix}/"),
                ("GET", "/events"),
                ("GET", "//info"),
            ):
                assert http.request(method, target).status == 401
                wrong = {"Authorization": "Basic YWxpY2U6YWxpY2U="}
                assert http.request(method, target, headers=wrong).status == status
            upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
            assert http.request("GET", f"{site.prefix}/ws", headers=upgrade).status == 401


@OPENSSL
def test_who_has_a_password_gets_in_and_jobs_do_not_see_it(closed: tuple[Site, Site]) -> None:
    site, _ = closed
    with site.connect(CLIENT) as http:
        http.host = "prouter.example.org"
        assert http.request("GET", "/info", headers=WITH_PASSWORD).status == 200
        assert http.request("GET", "/jobs", headers=WITH_PASSWORD).status == 200
    assert "authorization" not in site.echo(WITH_PASSWORD)
    with site.connect(CLIENT) as http:
        http.host = f"{site.job}.jobs.example.org"
        seen = http.request("GET", "/echo", headers=WITH_PASSWORD).json()
    assert "authorization" not in [name.lower() for name, _ in seen["headers"]]


def test_a_jobs_own_token_passes(site: Site) -> None:
    assert site.echo({"Authorization": "Bearer abc"})["authorization"] == ["Bearer abc"]


def test_a_name_that_the_router_does_not_know_is_refused(router_site: Site) -> None:
    for host, status in (("prouter.example.org", 200), ("evil.example", 421)):
        with router_site.connect() as http:
            http.host = host
            assert http.request("GET", "/info").status == status


def test_job_domain_reaches_the_job(router_site: Site) -> None:
    with router_site.connect() as http:
        http.host = f"{router_site.job}.jobs.example.org"
        seen = http.request("GET", "/echo?a=1").json()
    assert seen["line"] == "GET /echo?a=1 HTTP/1.1"


@pytest.mark.parametrize(
    "head",
    [
        "POST /shutdown HTTP/1.1\r\nHost: none.jobs.example.org.\r\n",
        "POST /shutdown HTTP/1.1\r\nHost: none.jobs.example.org.:80\r\n",
        "POST http://none.jobs.example.org/shutdown HTTP/1.1\r\nHost: elsewhere\r\n",
        "POST http://none.jobs.example.org/shutdown HTTP/1.0\r\n",
        "POST http://none.jobs.example.org:80/shutdown HTTP/1.0\r\n",
    ],
)
def test_no_host_name_leads_round_what_is_forbidden(router_site: Site, head: str) -> None:
    with router_site.connect(CLIENT) as http:
        http.sock.sendall(f"{head}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
        status, headers = http.read_head()
        answer = json.loads(b"".join(bytes(part) for part in http.read_body(headers)))
    assert (status, answer["detail"]) == (404, "job 'none' is not found")


def test_job_sees_the_host_and_port_the_client_asked_for(site: Site) -> None:
    for host in ("prouter.example.org", "prouter.example.org:8080", "[::1]", "[::1]:81"):
        with site.connect() as http:
            http.host = host
            seen = http.request("GET", f"{site.prefix}/echo").json()
        found = {name.lower(): value for name, value in seen["headers"]}
        assert (found["host"], found["x-forwarded-host"]) == (host, host)


def test_errors_of_the_router_pass(router_site: Site) -> None:
    with router_site.connect() as http:
        answer = http.request("GET", "/jobs/nowhere/nothing/info")
    assert answer.status == 404
    assert "is not found" in answer.json()["detail"]


def test_no_log_of_nginx_has_queries_or_passes(cleanup: contextlib.ExitStack, place: Path) -> None:
    port = free_port()
    prefix = place / "logs"
    cleanup.callback(Nginx(prefix, f"127.0.0.1:{free_port()}", port).close)  # nobody is there: nginx writes errors
    with Site(port, "").connect() as http:
        for target in ("/jobs/c/j/shared/s3cret/a/b?token=s3cret", "/jobs/c/j/http/.prouter/enter?code=s3cret"):
            assert http.request("GET", target, headers={"Referer": "http://x/?token=s3cret"}).status == 502
    access = prefix / "access.log"
    wait_until(lambda: access.read_text().count("\n") == 2)
    lines = access.read_text()
    assert '"GET /jobs/c/j/shared/***/a/b HTTP/1.1" 502' in lines
    assert '"GET /jobs/c/j/http/.prouter/enter HTTP/1.1" 502' in lines
    for log in ("access.log", "error.log", "stderr"):
        assert "s3cret" not in (prefix / log).read_text()


def test_an_absent_router_is_told(cleanup: contextlib.ExitStack, place: Path) -> None:
    site = Site(start_nginx(cleanup, place, "away", f"127.0.0.1:{free_port()}"), "")
    with site.connect() as http:
        answer: Answer = http.request("GET", "/info")
    assert (answer.status, answer.json()["code"]) == (502, "router_away")
    assert answer.headers["retry-after"] == "2"


@pytest.fixture(scope="module")
def corner(cleanup: contextlib.ExitStack, place: Path) -> Site:
    return Site(start_nginx(cleanup, place, "corner", start_job(cleanup, place, "corner_server", "0")), "")


def test_an_answer_cannot_steer_nginx(corner: Site) -> None:
    with corner.connect() as http:
        steered = "SFRUUC8xLjEgMjAwIE9LDQpYLUFjY2VsLVJlZGlyZWN0OiAvbGFzdA0KQ29udGVudC1MZW5ndGg6IDINCg0Kb2s="
        assert http.request("GET", f"/raw?b64={steered}").body == b"ok"


@pytest.mark.parametrize("path", ["/short-body", "/cut-chunk", "/cut-between"])
def test_a_cut_answer_stays_cut(corner: Site, path: str) -> None:
    with corner.connect() as http:
        http.send_head("GET", path, {})
        _, headers = http.read_head()
        with pytest.raises(Exception, match="ended"):
            http.count_body(headers)


def test_large_heads_pass(corner: Site) -> None:
    with corner.connect() as http:
        assert len(http.request("GET", "/huge-header?bytes=60000").headers["x-huge"]) == 60000
        assert http.request("GET", "/record/x", headers={"X-Big": "b" * 60000}).body == b"recorded"


@needed("openssl")
def test_tls_as_the_configuration_says(cleanup: contextlib.ExitStack, place: Path) -> None:
    upstream, port, prefix = start_job(cleanup, place, "fast_server", "0"), free_port(), place / "tls"
    key, certificate = place / "key.pem", place / "fullchain.pem"
    subject = ("-subj", "/CN=prouter.example.org", "-addext", "subjectAltName=DNS:prouter.example.org")
    request = (
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        *subject,
    )
    subprocess.run([*request, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)

    def with_tls(main: Path) -> None:
        site = main.parent / "conf.d" / "prouter.conf"
        text = site.read_text().replace(f"    listen 127.0.0.1:{port}", "    # plain: ")
        text = text.replace("# listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
        site.write_text(text.replace("# include snippets/prouter-tls.conf", "include snippets/prouter-tls.conf"))
        snippet = main.parent / "snippets" / "prouter-tls.conf"
        snippet.write_text(snippet.read_text().replace("/etc/ssl/prouter", str(place)))

    nginx = Nginx(prefix, upstream, port, adapt=with_tls)
    cleanup.callback(nginx.close)
    context = ssl.create_default_context(cafile=str(certificate))
    with (
        socket.create_connection(("127.0.0.1", port), 10) as sock,
        context.wrap_socket(sock, server_hostname="prouter.example.org") as tls,
    ):
        tls.sendall(b"GET /echo HTTP/1.1\r\nHost: prouter.example.org\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: tls.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'["X-Forwarded-Proto", "https"]' in answer


def test_rendering_refuses_a_configuration_without_the_marked_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(JOBS.parents[1] / "deploy" / "nginx", tmp_path / "deploy")
    shipped = tmp_path / "deploy" / "prouter.conf"
    shipped.write_text(shipped.read_text().replace("server 127.0.0.1:8888;", ""))
    monkeypatch.setattr("tests.bench.nginx.DEPLOY", tmp_path / "deploy")
    with pytest.raises(ValueError, match="has no line"):
        render(tmp_path / "etc", "127.0.0.1:1", "127.0.0.1:2")
