"""The Python client against a real router and agent, over connections that are cut at random places."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Queue
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from websockets.exceptions import InvalidHandshake
from websockets.sync.server import serve as serve_websockets

from prouter.client import (
    AsyncRouter,
    ConnectionFailed,
    Event,
    Forbidden,
    InvalidRequest,
    Job,
    NoAgent,
    NotFound,
    PreconditionFailed,
    Router,
    RouterError,
    StartFailed,
    TimedOut,
    Unauthorized,
)
from tests.support import processes
from tests.support.access import new_token
from tests.support.cutting_relay import CuttingRelay, randomly
from tests.support.processes import Agent, start_agent, start_router, wait_until

TALKER = """
import os, random, sys, time
data = random.Random(5).randbytes(40_000) + "ünï çödé ".encode() * 4_000
for at in range(0, len(data), 3001):
    os.write(1, data[at:at + 3001])
    time.sleep(0.01)
"""
TALK = random.Random(5).randbytes(40_000) + "ünï çödé ".encode() * 4_000


@pytest.fixture
def client(router: processes.Router, agent: Agent) -> Iterator[Router]:
    with Router(router.url) as client:
        yield client


@pytest.fixture
def relay(router: processes.Router, agent: Agent) -> Iterator[CuttingRelay]:
    with CuttingRelay(router.url) as relay:
        yield relay


def tree(root: Path) -> dict[str, bytes | str | None]:
    """What is in a directory."""
    found: dict[str, bytes | str | None] = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        found[name] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    rng = random.Random(1)
    for number in range(12):
        directory = root / f"d{number % 3}" / "ü x"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"f{number}").write_bytes(rng.randbytes(rng.randrange(120_000)))
    (root / "link").symlink_to("d0")
    (root / "empty").mkdir()
    return root


# -- a job's life -----------------------------------------------------------------------------------------------


def test_a_job_runs_and_is_removed_with_its_block(client: Router, project: Path, tmp_path: Path) -> None:
    with client.run([sys.executable, "-c", "print(open('d0/ü x/f0','rb').read()[:3]); exit(7)"], upload=project) as job:
        outcome = job.wait(30)
        assert (outcome.exit_code, outcome.signal, outcome.reason, outcome.ok) == (7, None, "exited", False)
        assert job.logs().text() == f"{(project / 'd0/ü x/f0').read_bytes()[:3]!r}\n"
        assert client.job(job.uid[:12]).path == client.job(client.url + job.path).path == job.path
        assert [one.uid for one in client.list(state=["FINISHED"], name=Path(sys.executable).name)].count(job.uid) == 1
        job.download("d0", tmp_path / "back")
    with pytest.raises(NotFound) as gone:
        job.info()
    assert (gone.value.status, gone.value.code, gone.value.job) == (404, "not_found", job.uid)
    assert tree(tmp_path / "back") == tree(project / "d0")


def test_kept_jobs_stay_and_failed_ones_do_not(client: Router) -> None:
    with client.create("kept", keep=True) as kept:
        pass
    with client.create("later") as later:
        later.keep()
    with client.job(kept.path) as found:
        assert found.kept
    for job in (kept, later):
        assert job.refresh().state == "NEW"
        job.remove()
    before = {job.uid for job in client.list()}
    with pytest.raises(StartFailed, match="no-such-program"):
        client.run(["no-such-program"])
    with pytest.raises(InvalidRequest, match="cwd"):
        client.run(["true"], cwd="/absolute")
    with pytest.raises(FileNotFoundError):
        client.run(["true"], upload="/no/such/directory")
    with pytest.raises(NoAgent, match="no one"):
        client.run(["true"], agent="no one")
    assert {job.uid for job in client.list()} == before


def test_signals_stops_and_waits(client: Router) -> None:
    with client.run(["sleep", "60"]) as job:
        with pytest.raises(TimedOut, match=job.uid):
            job.wait(0.1)
        job.signal("TERM")
        assert job.wait().signal == "SIGTERM"
    with client.run(["sleep", "60"]) as job:
        assert job.stop(grace=0).reason == "stopped"


# -- losses -----------------------------------------------------------------------------------------------------


def test_a_log_is_whole_over_cuts_for_both_fronts(client: Router, relay: CuttingRelay) -> None:
    relay.plan = randomly(11, 30_000, connections=14)

    async def follow(path: str) -> bytes:
        async with AsyncRouter(relay.url) as router:
            return await (await router.job(path)).logs(follow=True).read()

    def read(path: str) -> bytes:
        with Router(relay.url) as router:
            return b"".join(router.job(path).logs("stdout", follow=True))

    with client.run([sys.executable, "-c", TALKER]) as job, ThreadPoolExecutor() as pool:
        results = [pool.submit(read, job.path), pool.submit(lambda: asyncio.run(follow(job.path)))]
        assert [result.result(60) == TALK for result in results] == [True, True]
        assert relay.cut >= 8
        assert job.logs(offset=len(TALK) - 10).read() == TALK[-10:]
        assert job.logs("stderr").read() == b""
        assert len(list(job.logs(tail=1).lines())) == 1


def test_a_run_over_cuts_makes_exactly_one_job(client: Router, relay: CuttingRelay, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x" * 20_000)
    for seed in range(3):
        relay.count = 0
        relay.plan = randomly(seed, 900, connections=5)
        with Router(relay.url, retry_for=30) as router:
            job = router.run(["sh", "-c", "cat f | wc -c"], name=f"once-{seed}", upload=tmp_path, keep=True)
            assert job.wait(30).exit_code == 0
            assert job.logs().text().strip() == "20000"
            assert len([one for one in client.list() if one.name == f"once-{seed}"]) == 1
            job.remove()
    assert relay.cut > 4


def test_a_request_that_was_not_answered_is_carried_out_once(client: Router, relay: CuttingRelay) -> None:
    relay.plan = lambda number: 0 if number % 2 == 0 else None  # the request arrives, its answer does not
    with Router(relay.url) as router:
        job = router.create("unanswered")
        assert len([one for one in client.list() if one.name == "unanswered"]) == 1
        relay.cut_all()
        job.remove()
        assert relay.count == 4
    with pytest.raises(NotFound):
        client.job(job.path)


@pytest.mark.parametrize("upwards", [True, False])
def test_transfers_over_cuts_leave_whole_files_only(
    router: processes.Router, client: Router, project: Path, tmp_path: Path, upwards: bool
) -> None:
    told: list[tuple[int, int | None]] = []
    with client.create() as job, CuttingRelay(router.url, upwards=upwards) as relay, Router(relay.url) as bad:
        relay.plan = randomly(3, 300_000, connections=4)
        bad.job(job.path).upload(project, "in/it", progress=lambda done, total: told.append((done, total)))
        assert told[-1][0] == told[-1][1]
        bad.job(job.path).download("in/it", tmp_path / "sync")
        assert tree(tmp_path / "sync") == tree(project)

        async def both() -> None:
            async with AsyncRouter(relay.url) as third:
                found = await third.job(job.path)
                await found.upload(project, "second")
                await found.download("second", tmp_path / "async")

        relay.count = 0
        asyncio.run(both())
        assert tree(tmp_path / "async") == tree(project)
        assert relay.cut >= 2


def test_a_file_is_received_from_where_it_was_cut(client: Router, relay: CuttingRelay, tmp_path: Path) -> None:
    data = random.Random(2).randbytes(1_500_000)
    with client.create() as job, Router(relay.url) as bad:
        job.write("big", data)
        relay.plan = randomly(4, 500_000, connections=6)
        found = bad.job(job.path)
        found.download("big", f"{tmp_path}/new/")
        assert (tmp_path / "new" / "big").read_bytes() == data
        relay.count = 0
        assert found.read("big") == data
        assert found.read("big", offset=10, length=7) == data[10:17]
        relay.plan = lambda _: 100
        relay.cut_all()
        with Router(relay.url, retry_for=0.5) as hopeless, pytest.raises(ConnectionFailed):
            hopeless.job(job.path).download("big", tmp_path / "never")
        assert os.listdir(tmp_path) == ["new"]


def test_events_have_neither_gaps_nor_repetitions(client: Router, relay: CuttingRelay) -> None:
    relay.plan = randomly(6, 2500, connections=25)

    async def follow(ready: threading.Event, ids: list[int | None], last: str) -> None:
        async with AsyncRouter(relay.url) as router, router.events() as events:
            ready.set()
            async for event in events:
                ids.append(event.id)
                if is_last(event, last):
                    return

    def is_last(event: Event, name: str) -> bool:
        return event.type == "job.removed" and event.job is not None and event.job.name == name

    with client.events() as whole, Router(relay.url) as bad, bad.events() as cut, ThreadPoolExecutor() as pool:
        ready, seen = threading.Event(), list[int | None]()
        other = pool.submit(lambda: asyncio.run(follow(ready, seen, "last of all")))
        assert ready.wait(20)
        for name in [*map(str, range(12)), "last of all"]:
            client.create(name).remove()

        def until_last(events: Iterator[Event]) -> list[int | None]:
            ids = []
            for event in events:
                ids.append(event.id)
                if is_last(event, "last of all"):
                    break
            return ids

        expected = until_last(whole)
        assert len(expected) >= 26
        assert until_last(cut) == expected
        other.result(30)
        assert seen == expected[-len(seen) :]
        assert relay.cut >= 5
        with client.events(after=expected[0]) as again:
            assert next(again).id == expected[1]


def test_what_follows_a_job_outlives_a_restart_of_the_router(launch: Callable[..., Any], work_dir: Path) -> None:
    first = launch(start_router, workers=1, control__drain_timeout=0.5)
    agent = launch(start_agent, first)
    ports = {"control.port": int(first.url.rpartition(":")[2]), "server.port": int(first.agents.rpartition(":")[2])}
    ports["control.drain_timeout"] = 0
    script = "import time, os\nwhile not os.path.exists('go'): print('tick', flush=True); time.sleep(0.05)\nexit(4)"
    with Router(first.url) as client, client.events() as events, ThreadPoolExecutor() as pool:
        job = client.run([sys.executable, "-c", script], agent=agent.uid)
        waits = pool.submit(job.wait)
        logs = pool.submit(lambda: job.logs(follow=True).read())

        def end() -> Event:
            return next(event for event in events if event.job is not None and event.job.state == "FINISHED")

        ended = pool.submit(end)
        wait_until(lambda: job.logs().read().count(b"tick") > 3)
        first.stop()
        second = processes.Router(first.directory, ports, 1)
        try:
            wait_until(lambda: client.connections())
            job.write("go", "")
            assert waits.result(40).exit_code == 4
            whole = logs.result(40)
            assert whole == job.logs().read()
            assert set(whole.split()) == {b"tick"}
            assert ended.result(40).data["job"]["exit_code"] == 4
            job.remove()
        finally:
            second.stop()


# -- files ------------------------------------------------------------------------------------------------------


def test_a_sync_sends_what_differs(client: Router, project: Path, tmp_path: Path) -> None:
    local = tmp_path / "local"
    (local / "deep" / "er").mkdir(parents=True)
    for name in ("a", "deep/b", "deep/er/c"):
        (local / name).write_text(name)
    (local / "link").symlink_to("a")
    with client.create() as job:
        assert set(job.sync(local, "in").sent) == {"a", "deep/b", "deep/er/c", "link"}
        assert job.sync(local, "in").sent == ()
        (local / "a").write_text("A")
        os.utime(local / "deep" / "b", ns=(0, 0))
        job.write("in/extra/x", "x")
        synced = job.sync(local, "in", delete=True, exclude=["deep/er"])
        assert (set(synced.sent), synced.deleted, synced.kept) == ({"a", "deep/b"}, ("extra",), 1)
        assert job.read("in/a") == b"A"
        first = job.sync(local, "in", hash=True)
        assert first.kept == 0
        os.utime(local / "a", ns=(0, 0))
        job.write("in/deep/b", "other")
        assert job.sync(local, "in", hash=True).sent == ("deep/b",)
        assert job.read("in/deep/b") == b"deep/b"
        (local / "a").unlink()
        (local / "a").mkdir()
        assert job.sync(local, "in", delete=True).deleted == ("a",)
        paths = {entry.path: entry.type for entry in job.files("in", recursive=True)}
        assert paths["in/a"] == "dir"
        assert paths["in/deep/er/c"] == "file"


def test_single_files(client: Router, tmp_path: Path) -> None:
    with client.create() as job:
        job.write("a b/ü?", "text", mode=0o640)
        assert job.read("a b/ü?") == b"text"
        [entry] = job.files("a b")
        assert (entry.name, entry.path, entry.size, entry.mode) == ("ü?", "a b/ü?", 4, 0o640)
        assert [job.read("a b/ü?", offset=at, length=3) for at in (0, 2, 4, 9)] == [b"tex", b"xt", b"", b""]
        job.write("a b/run", "", mode=0o755)
        job.download("a b/run", tmp_path / "run")
        assert (tmp_path / "run").stat().st_mode & 0o777 == 0o755
        job.delete("a b/run")
        with pytest.raises(PreconditionFailed):
            job.write("a b/ü?", b"other", new=True)
        job.mkdir("x/y")
        for path, kind in (("../x", Forbidden), ("/etc/passwd", Forbidden), ("none", NotFound), ("x", RouterError)):
            with pytest.raises(kind):
                job.read(path)
        with pytest.raises(RouterError, match="not a directory"):
            job.files("a b/ü?")
        job.delete("x", recursive=True)
        assert [entry.name for entry in job.files()] == ["a b"]


# -- the job's server, and access -------------------------------------------------------------------------------

TRAP = """
import http.server, os
class Trap(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(307)
        self.send_header("Location", os.environ["LEADS_TO"])
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_POST = do_GET
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Trap).serve_forever()
"""


@pytest.fixture(scope="module")
def guarded(short_dir: Path) -> Iterator[tuple[processes.Router, str]]:
    """A router that asks for a token, and an admin's."""
    directory = short_dir / "guarded-client"
    directory.mkdir()
    token = new_token(directory, "root", "admin")["token"]
    router = start_router(directory, workers=1, control__job_domain="jobs.localhost", control__job_domain_only=True)
    agent = start_agent(short_dir / "guarded-agent", router)
    yield router, token
    agent.stop()
    router.stop()


def serve(client: Router, script: str, env: dict[str, str] | None = None) -> Job:
    return client.run([sys.executable, "-c", script], env=env, expose={"port": "assign", "path": "keep"})


def test_the_jobs_own_server(guarded: tuple[processes.Router, str], jobs: Path) -> None:
    router, token = guarded
    arrived: Queue[str | bytes] = Queue()
    with Router(router.url, token) as client:  # noqa: SIM117 (the block is long enough)
        with client.run([sys.executable, str(jobs / "websocket_server.py")], expose="assign") as job:
            assert job.http.get("seen").json() == {"open": 0, "ended": []}
            with job.ws("echo", subprotocols=["v1"]) as socket:
                socket.send("ü" * 2_000_000)
                assert socket.recv() == "ü" * 2_000_000

            async def echo() -> None:
                async with AsyncRouter(router.url, token) as other:
                    found = await other.job(job.uid)
                    assert (await found.http.get("seen")).status_code == 200
                    async with found.ws("echo") as socket:
                        await socket.send(b"x")
                        assert await socket.recv() == b"x"
                    await found.close()

            asyncio.run(echo())
            with job.ws("silent"):
                pass
            with serve_websockets(lambda other: arrived.put(other.recv()), "127.0.0.1", 0) as peer:
                threading.Thread(target=peer.serve_forever).start()
                uid = job.bridge(f"http://127.0.0.1:{peer.socket.getsockname()[1]}/there", "greet")
                assert arrived.get(timeout=20) == "hello ✓"
                with suppress(NotFound):  # the peer has closed it, perhaps in time
                    job.unbridge(uid)
                wait_until(lambda: job.bridges() == [])
                peer.shutdown()


def test_a_hostile_server_gets_no_token_and_leads_nowhere(guarded: tuple[processes.Router, str]) -> None:
    router, token = guarded
    with Router(router.url, token) as client, CuttingRelay(router.url) as elsewhere:
        for target in (f"{router.url}/whoami", f"{elsewhere.url}/whoami"):
            with serve(client, TRAP, {"LEADS_TO": target}) as job:
                with pytest.raises(InvalidHandshake, match="redirect"):
                    job.ws("x")
                if target.startswith(router.url):
                    with pytest.raises(ValueError, match="below the job's own address"):
                        job.http.post("x", follow_redirects=True)
                else:
                    assert job.http.post("x", follow_redirects=True).status_code in (401, 405)
                assert job.http.get("x").status_code == 307

                async def asynchronously(path: str) -> None:
                    async with AsyncRouter(router.url, token) as other:
                        with pytest.raises(InvalidHandshake, match="redirect"):
                            await (await other.job(path)).ws("x")

                asyncio.run(asynchronously(job.path))


MOVED = """
import http.server, os
class Moved(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path.startswith("/new") else 302)
        self.send_header("Location", os.environ["LEADS_TO"] + "/new?x")
        self.send_header("Content-Length", str(len(self.path)))
        self.end_headers()
        self.wfile.write(self.path.encode())
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Moved).serve_forever()
"""


def test_a_job_that_is_served_under_its_own_name_only_is_reached_and_its_redirects_followed(
    guarded: tuple[processes.Router, str],
) -> None:
    router, token = guarded
    port = urlsplit(router.url).port
    with Router(router.url, token) as client:
        with client.run([sys.executable, "-c", MOVED], env={"LEADS_TO": ""}, expose="assign") as job:
            assert job.url == f"http://{job.uid}.jobs.localhost:{port}/"
            assert job.http.post("new").status_code == 501
            assert job.http.get("old").status_code == 302
            assert job.http.get("old", follow_redirects=True).text == "/new?x"
            assert job.http.get(f"{job.url}new").text == "/new"
            assert job.http.get(f"{router.url}{job.path}/http/new").text == "/new"
            with pytest.raises(ValueError, match="below the job's own address"):
                job.http.get(f"{router.url}/whoami")
        there = f"http://{job.uid}.jobs.localhost:{port}"
        with (
            client.run([sys.executable, "-c", MOVED], env={"LEADS_TO": there}, expose="assign") as other,
            pytest.raises(httpx.ConnectError),  # to another job's name: no token, no detour by the router
        ):
            other.http.get("old", follow_redirects=True)


def test_tokens_and_roles(guarded: tuple[processes.Router, str]) -> None:
    router, token = guarded
    with Router(router.url, token) as admin:
        assert (admin.whoami().name, admin.whoami().role) == ("root", "admin")
        made = admin.create_token("ci", "viewer", expires=600)
        assert made.token is not None
        assert made.expires is not None
        assert made.id in {one.id for one in admin.tokens()}
        with Router(router.url, made.token) as viewer:
            assert viewer.whoami().role == "viewer"
            with pytest.raises(Forbidden) as refused:
                viewer.create()
            assert refused.value.code == "role_needed"
            admin.revoke_token(made.id)
            with pytest.raises(Unauthorized):
                viewer.whoami()
        [agent] = admin.connections()
        admin.drain(agent.agent.uid)
        with pytest.raises(NoAgent, match="draining"), Router(router.url, token, retry_for=0.1) as impatient:
            impatient.create()
        admin.resume(agent.uid)
        assert admin.info().uid


def test_share_links_are_made_once_over_cuts(guarded: tuple[processes.Router, str]) -> None:
    router, token = guarded
    args = [sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1"]
    with (
        CuttingRelay(router.url) as relay,
        Router(relay.url, token) as client,
        client.run(args, expose="assign") as job,
    ):
        relay.count = 0
        relay.plan = lambda number: 0 if number < 2 else None
        relay.cut_all()
        share = job.share(3600, name="for bob", methods="read")
        assert share.url is not None
        [listed] = job.shares()
        assert (listed.id, listed.name, listed.methods, listed.url) == (share.id, "for bob", "read", None)
        assert share.url not in repr(share)
        url = urlsplit(share.url)
        host = {"Host": f"{job.uid}.jobs.localhost"}
        entered = httpx.get(f"{router.url}{url.path}?{url.query}", headers=host)
        assert entered.status_code in (302, 303)
        cookie = entered.headers["Set-Cookie"].partition(";")[0]
        assert httpx.get(router.url, headers={**host, "Cookie": cookie}).status_code == 200
        job.unshare(share.id)
        assert job.shares() == []
        assert "code=" in job.open_url()


def test_tokens_are_made_once_over_cuts(guarded: tuple[processes.Router, str]) -> None:
    router, token = guarded
    with (
        CuttingRelay(router.url, lambda number: 0 if number < 2 else None) as relay,
        Router(relay.url, token) as client,
    ):
        made = client.create_token("once")
        assert [one.id for one in client.tokens() if one.name == "once"] == [made.id]
        with Router(router.url, made.token) as holder:
            assert holder.whoami().name == "once"


async def _taken(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


def test_the_asynchronous_front_lives_a_jobs_life(router: processes.Router, agent: Agent, tmp_path: Path) -> None:
    async def live() -> None:
        async with AsyncRouter(router.url) as client:
            async with client.run(["sh", "-c", "cat in; exit 3"], upload={"in": __file__}) as job:
                assert (await job.wait(30)).exit_code == 3
                assert await job.logs().read() == Path(__file__).read_bytes()
                assert len(await _taken(job.logs().lines())) == len(Path(__file__).read_text().splitlines())
                assert job.uid in {one.uid for one in await _taken(client.list())}
                await job.write("x", "y")
                await job.sync(tmp_path)
                assert await job.read("x") == b"y"
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(_taken(client.events()), 0.3)
            with pytest.raises(NotFound):
                await job.info()
            with pytest.raises(StartFailed):
                await client.run(["no-such-program"])
            made = await client.create("x")
            await made.remove()

    asyncio.run(live())
