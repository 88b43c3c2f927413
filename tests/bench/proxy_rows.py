"""Rows about traffic to a job's own HTTP server: requests, transfers, events, WebSockets, and disturbances."""

from __future__ import annotations

import contextlib
import time

from tests.bench import load
from tests.bench.processes import peak_reset, usage
from tests.bench.rows import Probe, Row, Settings, at_least, at_most
from tests.bench.stack import Stack

__all__ = ["MEMORY", "PROBES"]

MIB = 1 << 20


def get_many(stack: Stack, settings: Settings) -> dict[str, float]:
    """Small GETs, 64 connections."""
    seen = load.get(stack, "/", 64, settings.seconds)
    return {"rate": seen.rate, "p50": seen.p50, "p99": seen.p99, "requests": seen.done}


def get_one(stack: Stack, settings: Settings) -> dict[str, float]:
    """Small GETs, one connection."""
    seen = load.get(stack, "/", 1, settings.seconds)
    return {"p50": seen.p50, "p99": seen.p99, "requests": seen.done}


def downloads(stack: Stack, settings: Settings) -> dict[str, float]:
    """One big download, both framings."""
    size = settings.bulk
    return {
        "length": load.download(stack, f"{stack.prefix}/bytes/{size}", size),
        "chunked": load.download(stack, f"{stack.prefix}/chunked/{size}", size),
    }


def uploads(stack: Stack, settings: Settings) -> dict[str, float]:
    """One big upload, both framings."""
    target = f"{stack.prefix}/sink"
    return {
        "length": load.upload(stack, target, settings.bulk, chunked=False),
        "chunked": load.upload(stack, target, settings.bulk, chunked=True),
    }


def events(stack: Stack, settings: Settings) -> dict[str, float]:
    """Delay of server-sent events."""
    seen = load.sse(stack, round(100 * settings.seconds))
    return {"p50": seen.p50, "p99": seen.p99}


def ws_one(stack: Stack, settings: Settings) -> dict[str, float]:
    """One message at a time."""
    seen = load.ws(stack, 1, 1, 64, settings.seconds)
    return {"p50": seen.p50, "p99": seen.p99}


def ws_many(stack: Stack, settings: Settings) -> dict[str, float]:
    """32 connections, small messages."""
    one = load.ws(stack, 32, 1, 64, settings.seconds)
    many = load.ws(stack, 32, 16, 64, settings.seconds)
    return {"one": one.rate, "many": many.rate}


def ws_large(stack: Stack, settings: Settings) -> dict[str, float]:
    """32 connections, large messages."""
    return {"rate": load.ws(stack, 32, 16, 16384, settings.seconds).rate}


def ws_idle(stack: Stack, settings: Settings) -> dict[str, float]:
    """Memory of each further idle WebSocket, after the first tenth has made what all share."""
    first = settings.sockets // 10
    with load.idle_websockets(stack, first):
        before = resident(stack)
        with load.idle_websockets(stack, settings.sockets - first):
            after = resident(stack)
    return {"kib": max(0.0, after - before) / (settings.sockets - first) / 1024}


def resident(stack: Stack) -> float:
    """Return the resident bytes of all processes but the job."""
    used = [usage(process) for process in stack.processes() if not process.role.startswith("job")]
    return float(sum(one.resident for one in used if one is not None))


def beside_downloads(stack: Stack, settings: Settings) -> dict[str, float]:
    """Small GETs while four clients download at full speed."""
    with load.fast_downloads(stack, 4):
        seen = load.get(stack, "/", 4, settings.seconds)
    return {"p99": seen.p99}


def beside_slow(stack: Stack, settings: Settings) -> dict[str, float]:
    """Small GETs beside clients that read slowly or not at all: while these begin, later, and without them."""
    before = load.get(stack, "/", 64, settings.seconds)
    with load.slow_readers(stack, load.MB, reading=8, stalled=8):
        first = load.get(stack, "/", 64, settings.seconds)
        later = load.get(stack, "/", 64, settings.seconds)
    after = load.get(stack, "/", 64, settings.seconds)
    rate, p99 = (before.rate + after.rate) / 2, (before.p99 + after.p99) / 2
    return {
        "rate": later.rate / rate,
        "p99": later.p99 / p99,
        "first_rate": first.rate / rate,
        "first_p99": first.p99 / p99,
        "absolute": later.rate,
    }


def slow_memory(stack: Stack, settings: Settings) -> dict[str, float]:
    """Growth of the process that grows most in the first seconds of a 1 GiB download that is read at 10 MB/s."""
    group = [process for process in stack.processes() if not process.role.startswith("job")]
    if not group:
        return {}
    for process in group:
        peak_reset(process)
    before = {process: used.resident for process in group if (used := usage(process))}
    with load.slow_readers(stack, 10 * load.MB, reading=1):
        deadline = time.monotonic() + 4 * settings.seconds
        while (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(OSError):
                time.sleep(min(left, 0.5))
    grown = [used.peak - before[process] for process in before if (used := usage(process))]
    return {"mib": max(0.0, max(grown) / MIB)}


MEMORY = (
    Probe(
        "slowmem",
        slow_memory,
        (
            Row(
                "slowmem.mib",
                "memory growth beside a reader of 10 MB/s",
                "MiB",
                "mib",
                at_most(16),
                at_most(2),
                higher=False,
            ),
        ),
        once=True,
    ),
    Probe(
        "wsidle",
        ws_idle,
        (Row("wsidle.kib", "memory of an idle WebSocket", "KiB", "kib", at_most(60), at_most(30), "41", higher=False),),
        once=True,
    ),
)
"""Probes to run first: memory that earlier load left behind would hide their cost."""

PROBES = (
    Probe(
        "get",
        get_many,
        (
            Row(
                "get.rate",
                "small GET, 64 connections",
                "req/s",
                "rate",
                at_least(1, "chp"),
                at_least(1.5, "chp"),
                "1,490",
            ),
            Row("get.scaling", "the same, 2 workers against 1", "req/s", "rate", at_least(1.7, "prouter1")),
            Row("get.p50", "the same, p50", "ms", "p50", higher=False),
            Row("get.p99", "the same, p99", "ms", "p99", higher=False),
            Row(
                "get.cpu",
                "CPU per request, all but the job",
                "µs",
                "cpu_us",
                at_most(260),
                at_most(200),
                "1,250",
                higher=False,
            ),
        ),
    ),
    Probe(
        "get1",
        get_one,
        (
            Row(
                "get1.p50",
                "small GET, one connection, p50",
                "ms",
                "p50",
                at_most(3.5, "chp"),
                at_most(2, "chp"),
                "1.4",
                higher=False,
            ),
        ),
    ),
    Probe(
        "download",
        downloads,
        (
            Row(
                "download.length",
                "download, Content-Length",
                "MB/s",
                "length",
                at_least(1, "chp"),
                at_least(1700),
                "1,000",
            ),
            Row(
                "download.chunked", "download, chunked", "MB/s", "chunked", at_least(1, "chp"), at_least(1700), "1,070"
            ),
        ),
    ),
    Probe(
        "upload",
        uploads,
        (
            Row(
                "upload.length", "upload, Content-Length", "MB/s", "length", at_least(1, "chp"), at_least(1700), "1,180"
            ),
            Row(
                "upload.chunked",
                "upload, chunked",
                "MB/s",
                "chunked",
                at_least(1, "chp"),
                at_least(1700),
                "fails (502)",
            ),
        ),
    ),
    Probe(
        "sse",
        events,
        (
            Row(
                "sse.p50",
                "server-sent events, delay p50",
                "ms",
                "p50",
                at_most(0.7, above="direct"),
                at_most(0.4, above="direct"),
                "0.65",
                higher=False,
            ),
        ),
    ),
    Probe(
        "ws1",
        ws_one,
        (
            Row(
                "ws1.p50",
                "WebSocket 64 B round trip, p50",
                "ms",
                "p50",
                at_most(0.6),
                at_most(0.3),
                "0.30",
                higher=False,
            ),
            Row("ws1.p99", "the same, p99", "ms", "p99", None, None, "0.57", higher=False),
        ),
    ),
    Probe(
        "ws",
        ws_many,
        (
            Row(
                "ws.one", "WebSocket 64 B, 32 x 1 in flight", "msg/s", "one", at_least(13500), at_least(25000), "13,500"
            ),
            Row(
                "ws.many", "WebSocket 64 B, 32 x 16 in flight", "msg/s", "many", at_least(1e5), at_least(7e5), "20,100"
            ),
        ),
    ),
    Probe(
        "ws16k",
        ws_large,
        (Row("ws16k.rate", "WebSocket 16 KiB, 32 x 16 in flight", "msg/s", "rate", None, None, "11,700"),),
    ),
    Probe(
        "beside",
        beside_downloads,
        (
            Row(
                "beside.p99",
                "small GET p99 beside 4 fast downloads",
                "ms",
                "p99",
                at_most(15),
                at_most(4.4),
                "24",
                higher=False,
            ),
        ),
    ),
    Probe(
        "slow",
        beside_slow,
        (
            Row(
                "slow.rate",
                "small GET beside 16 slow readers, req/s",
                "x alone",
                "rate",
                at_least(0.9),
                at_least(0.9),
                "0",
            ),
            Row("slow.p99", "the same, p99", "x alone", "p99", at_most(1.1), at_most(1.1), "10.8 s", higher=False),
            Row("slow.first_rate", "while they begin, req/s", "x alone", "first_rate", at_least(0.9), at_least(0.9)),
            Row("slow.first_p99", "the same, p99", "x alone", "first_p99", at_most(1.1), at_most(1.1), higher=False),
        ),
    ),
)
