"""Requests that proxies and servers read differently: what becomes of each, asserted against what a job receives.

The corpus is in tests/data/http_attacks. Each request goes to the router directly, and through the shipped
nginx configuration under the real nginx. The job records every byte and is careless about framing, as some servers are.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.bench.nginx import Nginx
from tests.support.ports import free_port
from tests.support.processes import Router, start_agent, start_router
from tests.support.programs import needed
from tests.support.raw_http import Raw, exchange

TESTS = Path(__file__).parents[1]
Entry = dict[str, Any]


def corpus(name: str) -> list[Entry]:
    """The entries of a file of the corpus."""
    found: list[Entry] = yaml.safe_load((TESTS / "data" / "http_attacks" / f"{name}.yaml").read_text())
    return found


OPEN, CREDENTIALS = corpus("requests"), corpus("credentials")
KEYS = {"name", "send", "status", "sees", "cut", "holds", "never", "nginx"}
HOST = "prouter.example.org"
BODY = "GET /smuggled HTTP/1.1\r\nHost: a\r\nX: abcdef\r\n"
"""44 bytes that a server which overlooks Content-Length takes for a request."""
FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([\t \x21-\x7e\x80-\xff]*)")
STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")
LINES = {"line": "POST /a HTTP/1.1", "get": "GET /a HTTP/1.1"}
"""Short for the usual request lines."""
ONCE = (b"host", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-prefix", b"forwarded")


@dataclass(frozen=True)
class Stand:
    """A router, nginx in front of it unless it is not installed, and a job that records.

    Attributes:
        job: the job's path.
        record: the job's file of what arrived.
        tokens: of the job's owner and of others, by their abbreviation; empty for a router that asks for none.
        agent: the agent's uid.
    """

    router: Router
    nginx: Nginx | None
    job: str
    record: Path
    tokens: Mapping[str, str]
    agent: str

    def url(self, way: str) -> str:
        """Where a client of this way connects."""
        if way == "direct":
            return self.router.url
        assert self.nginx is not None
        return f"http://127.0.0.1:{self.nginx.port}"

    def bytes_of(self, text: str) -> bytes:
        """The bytes of a request of the corpus."""
        http, own = f"{self.job}/http", f"{self.job.rpartition('/')[2]}.jobs.example.org"
        after = f"Host: {HOST}\r\nConnection: close\r\n"
        for short, full in (
            ("<CHUNKED>", "<POST>Transfer-Encoding: chunked\r\n\r\n"),
            ("<GET>", f"GET <HTTP>/a HTTP/1.1\r\n{after}"),
            ("<POST>", f"POST <HTTP>/a HTTP/1.1\r\n{after}"),
            ("<NEXT>", "GET <HTTP>/smuggled HTTP/1.1\r\nHost: <HOST>\r\nConnection: close\r\n\r\n"),
            ("<BODY44>", BODY),
            ("<HTTP>", http),
            ("<JOB>", self.job),
            ("<TAIL>", self.job.removeprefix("/jobs")),
            ("<HOST>", HOST),
            ("<OWN>", own),
            ("<OWN-CAPITALS>", own.upper()),
            ("<BASIC>", base64.b64encode(f"x:{self.tokens.get('<TOKEN>', '')}".encode()).decode()),
            *self.tokens.items(),
        ):
            text = text.replace(short, full)
        return text.encode("latin-1")


@contextmanager
def standing(*, guarded: bool) -> Iterator[Stand]:
    """A stand, whose router asks for tokens or not."""
    with ExitStack() as stack:
        place = Path(tempfile.mkdtemp(prefix="pra-"))
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        unix = place / "control.sock"
        # One worker, so that a connection to the job that was left in disorder serves the next request.
        router = start_router(
            place / "router",
            workers=1,
            control__unix=str(unix),
            control__trusted_proxies=("unix",),
            control__job_domain="jobs.example.org",
            control__hosts=[HOST],
        )
        stack.callback(router.stop)
        agent = start_agent(place / "agent", router)
        stack.callback(agent.stop)
        tokens = made_tokens(router) if guarded else {}
        headers = {"Authorization": f"Bearer {tokens['<TOKEN>']}"} if guarded else {}
        started = {"args": [sys.executable, str(TESTS / "jobs" / "recording_server.py")], "expose": {"port": "assign"}}
        made = router.post(
            "/jobs/run", {"name": "record", "agent": {"type": "uid", "uid": agent.uid}, **started}, headers=headers
        )
        assert made.status_code == 200, made.text
        job = made.json()["path"]
        assert router.get(f"{job}/http/first", headers=headers).status_code == 200
        (record,) = (place / "agent" / "jobs").rglob("record")
        nginx = None
        if shutil.which("nginx"):
            nginx = Nginx(place / "nginx", f"unix:{unix}", free_port())
            stack.callback(nginx.close)
        yield Stand(router, nginx, job, record, tokens, agent.uid)


def made_tokens(router: Router) -> dict[str, str]:
    """Make a token for each abbreviation of the corpus; from then on the router asks for one."""
    found: dict[str, str] = {}
    for short, name, role in (
        ("<ADMIN>", "admin", "admin"),
        ("<TOKEN>", "owner", "user"),
        ("<OTHER>", "other", "user"),
        ("<VIEWER>", "viewer", "viewer"),
    ):
        headers = {"Authorization": f"Bearer {found['<ADMIN>']}"} if found else {}
        made = router.post("/tokens", {"name": name, "role": role}, headers=headers)
        assert made.status_code == 201, made.text
        found[short] = made.json()["token"]
    return found


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with standing(guarded=False) as found:
        yield found


@pytest.fixture(scope="module")
def guarded() -> Iterator[Stand]:
    with standing(guarded=True) as found:
        yield found


def responses_to(url: str, data: bytes) -> bytes:
    """Send the bytes and read until the connection ends; a request of the corpus is made so that it ends."""
    with Raw(url, 20) as raw:
        try:
            raw.send(data)
        except ConnectionError:
            raw.cut = True
        return raw.read_to_end()


_sentinels = itertools.count()


def seen_meanwhile(stand: Stand, way: str, data: bytes) -> tuple[bytes, list[bytes]]:
    """Return the responses, and what the job received from the request until a request of another client was served."""
    before = stand.record.stat().st_size
    got = responses_to(stand.url(way), data)
    sentinel = f"GET /sentinel{next(_sentinels)} HTTP/1.1".encode()
    target = f"{stand.job}/http{sentinel.decode().split()[1]}"
    credentials = f"Authorization: Bearer {stand.tokens['<TOKEN>']}\r\n" if stand.tokens else ""
    answer, _ = exchange(stand.url(way), "GET", target, credentials, host=HOST)
    assert answer.partition(b"\r\n\r\n")[2] == sentinel, "another client got the response to a smuggled request"
    with stand.record.open("rb") as file:
        file.seek(before)
        found = [bytes.fromhex(json.loads(line)["data"]) for line in file]
    return got, [data for data in found if not data.startswith(sentinel)]


def check_form(data: bytes) -> None:
    """Check that nothing in a request that the job received can be read in two ways."""
    head, end, body = data.partition(b"\r\n\r\n")
    assert end, data
    first, *lines = head.split(b"\r\n")
    assert re.fullmatch(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [\x21-\x7e\x80-\xff]+ HTTP/1\.1", first), first
    fields = [FIELD.fullmatch(line) for line in lines]
    assert all(fields), lines
    named = [(field[1].lower(), field[2]) for field in fields if field is not None]
    for name in ONCE:
        assert len([one for one, _ in named if one.replace(b"_", b"-") == name]) <= 1, (name, data)
    lengths = [value for name, value in named if name == b"content-length"]
    codings = [value for name, value in named if name == b"transfer-encoding"]
    assert len(lengths) + len(codings) <= 1, data
    if codings:
        assert codings == [b"chunked"]
        assert body.endswith(b"0\r\n\r\n")
    else:
        assert len(body) == int(lengths[0]) if lengths else body == b"", data


def check_cut(seen: list[bytes]) -> None:
    """Check that the job received no complete request: at most one head, and a chunked body without its end."""
    for head, _, body in (data.partition(b"\r\n\r\n") for data in seen):
        assert b"Transfer-Encoding: chunked" in head
        assert not body.endswith(b"0\r\n\r\n"), body
    assert len(seen) <= 1


def expected(entry: Mapping[str, Any], way: str) -> dict[str, Any]:
    """What has to become of a request that goes this way."""
    told = {"status": [400], "sees": [], "cut": False, "holds": [], "never": [], **entry}
    if way == "nginx":
        told = {**told, **entry.get("nginx", {})}
        if not told["sees"]:
            told["holds"] = []
    return told


def check(stand: Stand, entry: Mapping[str, Any], way: str) -> bytes:
    """Send a request of the corpus, check what becomes of it, and return what the job received."""
    assert entry.keys() <= KEYS
    told = expected(entry, way)
    got, seen = seen_meanwhile(stand, way, stand.bytes_of(entry["send"]))
    statuses = [int(status) for status in STATUS.findall(got) if status != b"100"]
    everything = b"".join(seen)
    if told["cut"]:
        check_cut(seen)
        seen = []
    assert (statuses, [data.partition(b"\r\n")[0] for data in seen]) == (
        told["status"],
        [stand.bytes_of(LINES.get(line, line)) for line in told["sees"]],
    ), (got, seen)
    for data in seen:
        check_form(data)
    for part in told["holds"]:
        assert stand.bytes_of(part) in everything, everything
    for part in told["never"]:
        assert part.encode() not in everything.lower(), everything
    return everything


WAYS = pytest.mark.parametrize("way", ["direct", pytest.param("nginx", marks=needed("nginx"))])


@WAYS
@pytest.mark.parametrize("entry", OPEN, ids=[entry["name"] for entry in OPEN])
def test_a_request_is_read_in_one_way_or_refused(stand: Stand, entry: Entry, way: str) -> None:
    check(stand, entry, way)


@WAYS
@pytest.mark.parametrize("entry", CREDENTIALS, ids=[entry["name"] for entry in CREDENTIALS])
def test_nobody_gets_round_tokens_and_no_job_sees_one(guarded: Stand, entry: Entry, way: str) -> None:
    received = check(guarded, entry, way)
    for token in guarded.tokens.values():
        assert token.encode() not in received
        assert base64.b64encode(f"x:{token}".encode()) not in received
