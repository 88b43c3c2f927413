"""Load generators: one function for each kind of client, each cheap enough not to limit what is measured.

Small requests come from wrk, WebSocket messages from wsload.c (compiled on first use), the rest from raw sockets.
Rates are per second, times milliseconds, sizes bytes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.bench.client import BadAnswer, Connection, upgrade
from tests.bench.stack import CACHE, Stack

__all__ = [
    "Load",
    "LoadFailed",
    "download",
    "fast_downloads",
    "get",
    "idle_websockets",
    "slow_readers",
    "sse",
    "upload",
    "ws",
]

MB = 1_000_000
GIB = 1 << 30

WRK_DONE = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\nJSON {"requests": %d, "us": %d, "errors": %d, "p50": %f, "p99": %f}\\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
"""


class LoadFailed(Exception):
    """A load generator failed, or got wrong responses."""


class Load(NamedTuple):
    """Results of a load generator."""

    rate: float
    p50: float
    p99: float
    done: int


def get(stack: Stack, path: str, connections: int, seconds: float, script: str = "") -> Load:
    """GET the same path over and over, one request in flight on each connection.

    Args:
        path: as the job server sees it; with a leading ``!`` a path of the router itself.
        script: Lua for wrk, to send something else.

    Raises:
        LoadFailed: wrk is missing, or an answer was an error.
    """
    if shutil.which("wrk") is None:
        raise LoadFailed("wrk is missing (Debian package wrk)")
    target = path[1:] if path.startswith("!") else stack.prefix + path
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as lua:
        lua.write(script + WRK_DONE)
        lua.flush()
        url = f"http://{stack.address[0]}:{stack.address[1]}{target}"
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{max(1, round(seconds))}",
            "--timeout",
            "20",
            "-s",
            lua.name,
            url,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60)
    _, found, line = done.stdout.partition("\nJSON ")
    if not found:
        raise LoadFailed(f"wrk: {done.stdout} {done.stderr}")
    seen = json.loads(line)
    if seen["errors"] or not seen["requests"]:
        raise LoadFailed(f"{stack.name}: {seen['errors']} errors in {seen['requests']} requests to {target}")
    return Load(seen["requests"] / seen["us"] * 1e6, seen["p50"], seen["p99"], seen["requests"])


def wsload() -> Path:
    """Return the path of the WebSocket generator, compiled if its source is newer.

    Raises:
        LoadFailed: no compiler.
    """
    source = Path(__file__).with_name("wsload.c")
    program = CACHE / "wsload"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        if shutil.which("gcc") is None:
            raise LoadFailed("gcc is missing (Debian package gcc)")
        CACHE.mkdir(exist_ok=True)
        (CACHE / ".gitignore").write_text("*\n")
        subprocess.run(["gcc", "-O2", "-o", str(program), str(source)], check=True)
    return program


def ws(stack: Stack, connections: int, in_flight: int, size: int, seconds: float) -> Load:
    """Echo messages through WebSockets.

    Raises:
        LoadFailed: a connection broke, or an echo was wrong.
    """
    host, port = stack.address
    numbers = (str(port), f"{stack.prefix}/ws", str(connections), str(in_flight), str(size), str(seconds))
    done = subprocess.run(
        [str(wsload()), host, *numbers], capture_output=True, text=True, check=False, timeout=seconds + 60
    )
    if done.returncode:
        raise LoadFailed(f"{stack.name}: {done.stderr.strip()}")
    seen = json.loads(done.stdout)
    return Load(seen["messages"] / seen["seconds"], seen["p50_ms"], seen["p99_ms"], seen["messages"])


def download(stack: Stack, target: str, size: int) -> float:
    """Measure one download in MB/s.

    Args:
        target: the whole request target.

    Raises:
        BadAnswer: not `size` bytes, or cut off.
    """
    with contextlib.closing(stack.connect()) as http:
        started = time.perf_counter()
        http.send_head("GET", target, {})
        status, headers = http.read_head()
        received = http.count_body(headers)
        took = time.perf_counter() - started
    if status != 200 or received != size:
        raise BadAnswer(f"{stack.name}: GET {target}: {status}, {received} of {size} bytes")
    return size / took / MB


def upload(stack: Stack, target: str, size: int, *, chunked: bool, count_back: bool = True) -> float:
    """Measure one upload in MB/s.

    Args:
        count_back: whether the answer tells how many bytes arrived.

    Raises:
        BadAnswer: not all of it arrived.
    """
    piece = bytes(256 * 1024)
    block = b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece
    framing = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(size)}
    with contextlib.closing(stack.connect()) as http:
        started = time.perf_counter()
        http.send_head("POST", target, {"Content-Type": "application/octet-stream", **framing})
        for _ in range(size // len(piece)):
            http.sock.sendall(block)
        if chunked:
            http.sock.sendall(b"0\r\n\r\n")
        status, headers = http.read_head()
        body = b"".join(bytes(part) for part in http.read_body(headers))
        took = time.perf_counter() - started
    if status != 200 or (count_back and body != b"%d" % size):
        raise BadAnswer(f"{stack.name}: POST {target}: {status} {body[:300]!r}")
    return size / took / MB


def sse(stack: Stack, count: int) -> Load:
    """Measure the delay of server-sent events, 10 ms apart, from the job's reading of the clock to the client's."""
    delays = []
    started = time.perf_counter()
    with contextlib.closing(stack.connect()) as http:
        http.send_head("GET", f"{stack.prefix}/sse?interval_ms=10&count={count}", {"Accept": "text/event-stream"})
        status, headers = http.read_head()
        for part in http.read_body(headers, status=status):
            arrived = time.monotonic_ns()
            delays += [
                (arrived - int(line[6:])) / 1e6 for line in bytes(part).split(b"\n") if line.startswith(b"data: ")
            ]
    if len(delays) != count:
        raise LoadFailed(f"{stack.name}: {len(delays)} of {count} events")
    delays.sort()
    return Load(count / (time.perf_counter() - started), statistics.median(delays), delays[int(count * 0.99)], count)


@contextlib.contextmanager
def fast_downloads(stack: Stack, count: int) -> Iterator[None]:
    """Let `count` clients download as fast as they can meanwhile."""
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            with contextlib.closing(stack.connect()) as http:
                http.send_head("GET", f"{stack.prefix}/bytes/{GIB}", {})
                _, headers = http.read_head()
                for _ in http.read_body(headers):
                    if stop.is_set():
                        break

    threads = [threading.Thread(target=run, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


@contextlib.contextmanager
def slow_readers(stack: Stack, rate: int, reading: int, stalled: int = 0) -> Iterator[None]:
    """Let clients download 1 GiB meanwhile: `reading` clients at `rate` bytes/s, `stalled` ones without reading."""
    connections = [Connection(stack.address, receive_buffer=65536) for _ in range(reading + stalled)]
    for http in connections:
        http.send_head("GET", f"{stack.prefix}/bytes/{GIB}", {})
    stop = threading.Event()

    def run() -> None:
        for http in connections[:reading]:
            http.sock.setblocking(False)
        last, owed = time.monotonic(), 0.0
        while not stop.wait(0.02):
            at = time.monotonic()
            owed, last = min(owed + rate * (at - last), rate), at
            for http in connections[:reading]:
                read_some(http, int(owed))
            owed = 0.0

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for http in connections:
            http.close()


def read_some(http: Connection, size: int) -> None:
    """Read up to `size` bytes that have arrived."""
    with contextlib.suppress(BlockingIOError):
        while size > 0:
            part = http.sock.recv(min(size, 65536))
            if not part:
                raise LoadFailed("a slow download ended")
            size -= len(part)


@contextlib.contextmanager
def idle_websockets(stack: Stack, count: int) -> Iterator[None]:
    """Keep `count` WebSockets open meanwhile, each of which has echoed one message."""
    connections: list[Connection] = []
    try:
        for _ in range(count):
            http = stack.connect()
            connections.append(http)
            upgrade(http, f"{stack.prefix}/ws")
        for http in connections:
            http.sock.sendall(b"\x82\x82\0\0\0\0hi")
        for http in connections:
            if http.sock.recv(100) != b"\x82\x02hi":
                raise LoadFailed("a WebSocket did not echo")
        yield
    finally:
        for http in connections:
            http.close()
