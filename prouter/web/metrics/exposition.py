"""Every figure of ``/metrics``: its name, kind and meaning, as answers and docs/metrics.md have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric

from prouter import __version__
from prouter.web.metrics.counters import API, BOUNDS, JOB, Totals

__all__ = ["BROKER", "FIGURES", "Figure", "families"]

_RECIPIENTS = {API: "api", JOB: "job"}


class Figure(NamedTuple):
    """One metric.

    Attributes:
        name: as Prometheus knows it; counters end in ``_total``.
        kind: ``counter``, ``gauge``, ``histogram`` or ``info``.
        help: what it means, for its HELP line and the documentation.
        labels: names of its labels.
    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()


INFO = Figure("prouter_info", "info", "The version of the worker that answers", ("version",))
REQUESTS = Figure(
    "prouter_worker_requests_total",
    "counter",
    "Answers of all workers there have been: to the API (to=api), or under jobs' paths and names (to=job)",
    ("to", "method", "status"),
)
SECONDS = Figure(
    "prouter_worker_response_seconds",
    "histogram",
    "Time from a request's head to its answer's; waits, held requests and uploads are in it",
    ("to",),
)
CPU = Figure("prouter_worker_cpu_seconds_total", "counter", "CPU time of all workers there have been")
WORKER: dict[str, Figure] = {
    name: Figure(f"prouter_worker_{name}", "gauge", told)
    for name, told in {
        "streams": "Streams between workers and agents",
        "streams_fast": "Those of them that move much",
        "streams_fast_elsewhere": "How many of those the workers know others to have, summed over the workers",
        "calls_pending": "Calls that wait for the broker's answer",
        "routes_cached": "Jobs whose place workers remember",
        "connections": "Clients' connections",
        "bridges": "WebSocket bridges",
        "greenlets": "Greenlets, as counted within a second after these figures were last asked for",
        "resident_memory_bytes": "Resident memory of the worker processes",
    }.items()
}
UP = Figure("prouter_broker_up", "gauge", "1 if the broker has answered; if not, its other figures are missing")

_GAUGES = {
    "links.up": "Agents that can be reached",
    "links.away": "Agents that are waited for",
    "workers": "HTTP workers that are linked",
    "streams.fast": "Streams that move much, of all workers",
    "uptime_seconds": "Time since this broker started; its counters begin with it",
    "waits": "Requests that wait for the end of a job",
    "inbox": "Control frames that wait for their turn",
    "calls": "Calls of workers being carried out",
    "agent_calls": "Calls to agents without an answer so far",
    "creations": "Jobs being created",
    "dials": "Agents that are dialled, or linked because a client asked for their address",
    "events.last": "Id of the newest event",
    "rss_bytes": "Resident memory of the broker process",
    "strangers": "Connections to the agents' port whose peer is not accepted so far",
    "loop.lag_max_seconds": "The longest iteration of the broker's event loop in the last ten to twenty seconds",
    "loop.lag_avg_seconds": "Moving average of the iterations of its event loop",
    "store.backlog": "Changes that are not written to the database so far",
    **{f"jobs.{state}": f"Jobs that are {state}" for state in ("NEW", "PENDING", "RUNNING", "FINISHED", "CLOSED")},
}
_COUNTERS = {
    "messages.routed": ("messages_routed", "Messages passed on between workers and agents"),
    "messages.dropped": ("messages_dropped", "Messages without a receiver; their streams resume"),
    "cpu_seconds": ("cpu_seconds", "CPU time of the broker process"),
    "loop.turns": ("loop_turns", "Iterations of its event loop"),
    "store.failures": ("store_failures", "Attempts to write to the database that failed"),
    "store.written": ("store_written", "Changes written to the database"),
    "total.strangers_cut": ("strangers_cut", "Connections ended because there were too many that are not accepted"),
    "total.strangers_ignored": ("strangers_ignored", "HELLOs not looked at because there were too many"),
    "total.hellos_refused": ("hellos_refused", "HELLOs refused"),
    "total.malformed": ("malformed", "Messages that break the protocol"),
    "total.malformed_strangers": ("malformed_strangers", "Those of them whose sender is not accepted"),
    "total.overflowed": (
        "overflowed",
        "Messages dropped because too much waited for their receiver; their streams resume",
    ),
    "total.overflowed_bytes": ("overflowed_bytes", "Bytes in those"),
    "total.floods": ("floods", "Agents cut off because they sent too much"),
    "total.jobs_forgotten": ("jobs_forgotten", "Ended jobs dropped because the history was full"),
    "total.links_up": ("links_linked", "Times that an agent was linked, again or anew"),
    "total.links_lost": ("links_lost", "Times that the link to an agent was lost"),
    "total.failures": ("failures", "Errors in the broker itself: each is in its log"),
}

BROKER: dict[str, Figure] = {
    **{key: Figure(f"prouter_broker_{key.replace('.', '_')}", "gauge", told) for key, told in _GAUGES.items()},
    **{key: Figure(f"prouter_broker_{name}_total", "counter", told) for key, (name, told) in _COUNTERS.items()},
}
"""By the names that the broker's ``stats`` gives them."""

FIGURES: tuple[Figure, ...] = (INFO, UP, *BROKER.values(), REQUESTS, SECONDS, CPU, *WORKER.values())


def families(totals: Totals, broker: Mapping[str, float] | None) -> Iterator[Metric]:
    """All metrics with their samples.

    Args:
        broker: the broker's ``stats``, None while it is away.
    """
    yield InfoMetricFamily("prouter", INFO.help, {"version": __version__})
    yield GaugeMetricFamily(UP.name, UP.help, 0 if broker is None else 1)
    if broker is not None:
        counted = {key: 0.0 for key in BROKER if key.startswith("total.")}
        for key, value in {**counted, **broker}.items():
            yield _single(BROKER.get(key) or _unknown(key), value)
    yield from _of_workers(totals)


def _of_workers(totals: Totals) -> Iterator[Metric]:
    requests = CounterMetricFamily(REQUESTS.name, REQUESTS.help, labels=REQUESTS.labels)
    for (to, method, status), count in totals.requests.items():
        if count or (method, status) == ("GET", "2xx"):
            requests.add_metric([_RECIPIENTS[to], method, status], count)
    yield requests
    seconds = HistogramMetricFamily(SECONDS.name, SECONDS.help, labels=SECONDS.labels)
    for to, name in _RECIPIENTS.items():
        buckets, count = [], 0.0
        for bound, more in zip((*map(str, BOUNDS), "+Inf"), totals.buckets[to], strict=True):
            count += more
            buckets.append((bound, count))
        seconds.add_metric([name], buckets, totals.seconds[to])
    yield seconds
    yield _single(CPU, totals.cpu_seconds)
    for name, figure in WORKER.items():
        yield _single(figure, totals.gauges[name])


def _single(figure: Figure, value: float) -> Metric:
    family = CounterMetricFamily if figure.kind == "counter" else GaugeMetricFamily
    return family(figure.name, figure.help, value)


def _unknown(key: str) -> Figure:
    """A figure of a broker that knows more."""
    name = f"prouter_broker_{key.removeprefix('total.').replace('.', '_')}"
    told = f"The broker's figure {key}"
    return Figure(f"{name}_total", "counter", told) if key.startswith("total.") else Figure(name, "gauge", told)
