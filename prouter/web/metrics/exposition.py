"""All metrics of ``/metrics``: name, kind and meaning, for Prometheus and for docs/metrics.md."""

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


INFO = Figure("prouter_info", "info", "Version of the worker that answers the scrape", ("version",))
REQUESTS = Figure(
    "prouter_worker_requests_total",
    "counter",
    "Responses of all workers, past and present: of the API (to=api), or under jobs' paths and names (to=job)",
    ("to", "method", "status"),
)
SECONDS = Figure(
    "prouter_worker_response_seconds",
    "histogram",
    "Time from a request's head to the head of its response; waits, held requests and uploads are included",
    ("to",),
)
REFUSALS = Figure(
    "prouter_worker_refusals_total",
    "counter",
    "Requests that were refused because of a limit, by its configuration key",
    ("limit",),
)
CPU = Figure("prouter_worker_cpu_seconds_total", "counter", "CPU time of all workers, past and present")
WORKER: dict[str, Figure] = {
    name: Figure(f"prouter_worker_{name}", "gauge", told)
    for name, told in {
        "streams": "Streams between workers and agents",
        "streams_fast": "Streams that transfer much data",
        "streams_fast_elsewhere": "Fast streams that each worker believes the others to have, summed over workers",
        "calls_pending": "Calls that wait for the broker's reply",
        "routes_cached": "Jobs whose agent and state workers have in their caches",
        "connections": "Client connections",
        "bridges": "WebSocket bridges",
        "greenlets": "Greenlets, counted within a second after the last scrape",
        "resident_memory_bytes": "Resident memory of the worker processes",
    }.items()
}
UP = Figure("prouter_broker_up", "gauge", "1 if the broker has answered; otherwise its other metrics are missing")

_GAUGES = {
    "links.up": "Agents that are linked",
    "links.away": "Agents that are away and waited for",
    "pool.size": "Jobs that linked agents should keep ready (jobs.pool)",
    "pool.ready": "Jobs that they have ready",
    "pool.failures": "Starts of such jobs that failed since one of the template was ready for a minute or taken",
    "workers": "HTTP workers that are linked",
    "streams.fast": "Streams of all workers that transfer much data",
    "uptime_seconds": "Time since this broker started; its counters start at zero with it",
    "waits": "Requests that wait for the end of a job",
    "inbox": "Control frames that wait to be processed",
    "calls": "Calls of workers in progress",
    "agent_calls": "Calls to agents that have no reply yet",
    "creations": "Jobs being created",
    "queue.waiting": "Jobs that wait in the queue for an agent",
    "queue.seconds": "Time for which the job that goes next has waited in the queue",
    "dials": "Agents that the router dials, or has dialled, because a client gave their address",
    "events.last": "Id of the newest event",
    "rss_bytes": "Resident memory of the broker process",
    "strangers": "Unauthenticated connections to the agents' port",
    "loop.lag_max_seconds": "Longest iteration of the broker's event loop in the last ten to twenty seconds",
    "loop.lag_avg_seconds": "Moving average of the duration of its event loop iterations",
    "store.backlog": "Changes that are not yet written to the database",
    **{f"jobs.{state}": f"Jobs in the state {state}" for state in ("NEW", "PENDING", "RUNNING", "FINISHED", "CLOSED")},
}
_COUNTERS = {
    "messages.routed": ("messages_routed", "Messages forwarded between workers and agents"),
    "messages.dropped": (
        "messages_dropped",
        "Messages dropped because their receiver was not connected; their streams resume",
    ),
    "cpu_seconds": ("cpu_seconds", "CPU time of the broker process"),
    "loop.turns": ("loop_turns", "Iterations of its event loop"),
    "store.failures": ("store_failures", "Attempts to write to the database that failed"),
    "store.written": ("store_written", "Changes written to the database"),
    "total.strangers_cut": ("strangers_cut", "Unauthenticated connections that were silent or took too long"),
    "total.strangers_ignored": ("strangers_ignored", "HELLOs ignored because there were too many"),
    "total.hellos_refused": ("hellos_refused", "HELLOs refused"),
    "total.malformed": ("malformed", "Messages that break the protocol"),
    "total.malformed_strangers": ("malformed_strangers", "Malformed messages from unauthenticated connections"),
    "total.overflowed": (
        "overflowed",
        "Messages dropped because too many bytes waited for their receiver; their streams resume",
    ),
    "total.overflowed_bytes": ("overflowed_bytes", "Bytes in the messages dropped because too many waited"),
    "total.floods": ("floods", "Agents disconnected because they sent too much"),
    "total.jobs_forgotten": ("jobs_forgotten", "Finished jobs removed because the history was full"),
    "total.jobs_ready": ("jobs_ready", "Jobs of a template that were ready when they were asked for"),
    "total.jobs_not_ready": ("jobs_not_ready", "Jobs of a template of which none was ready"),
    "queue.decisions": ("queue_decisions", "Offers of an agent's space that the queue has looked at"),
    "total.queue_added": ("queue_added", "Jobs that were queued"),
    "total.queue_placed": ("queue_placed", "Jobs that left the queue for an agent"),
    "total.queue_timeouts": ("queue_timeouts", "Jobs that ended because no agent had space in time"),
    "total.links_up": ("links_linked", "Links of agents established, first ones and later ones"),
    "total.links_lost": ("links_lost", "Links of agents lost"),
    "total.failures": ("failures", "Internal errors of the broker; each is in its log"),
}

BROKER: dict[str, Figure] = {
    **{key: Figure(f"prouter_broker_{key.replace('.', '_')}", "gauge", told) for key, told in _GAUGES.items()},
    **{key: Figure(f"prouter_broker_{name}_total", "counter", told) for key, (name, told) in _COUNTERS.items()},
}
"""The broker's metrics by their names in its ``stats``."""

FIGURES: tuple[Figure, ...] = (INFO, UP, *BROKER.values(), REQUESTS, SECONDS, REFUSALS, CPU, *WORKER.values())


def families(totals: Totals, broker: Mapping[str, float] | None) -> Iterator[Metric]:
    """Yield all metrics with their samples.

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
    refusals = CounterMetricFamily(REFUSALS.name, REFUSALS.help, labels=REFUSALS.labels)
    for limit, count in totals.refusals.items():
        refusals.add_metric([limit], count)
    yield refusals
    yield _single(CPU, totals.cpu_seconds)
    for name, figure in WORKER.items():
        yield _single(figure, totals.gauges[name])


def _single(figure: Figure, value: float) -> Metric:
    family = CounterMetricFamily if figure.kind == "counter" else GaugeMetricFamily
    return family(figure.name, figure.help, value)


def _unknown(key: str) -> Figure:
    """Return a metric for a statistic of a newer broker that this worker does not know."""
    name = f"prouter_broker_{key.removeprefix('total.').replace('.', '_')}"
    told = f"The broker's statistic {key}"
    return Figure(f"{name}_total", "counter", told) if key.startswith("total.") else Figure(name, "gauge", told)
