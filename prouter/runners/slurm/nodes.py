"""The connections of nodes: which job each belongs to, what it tells, and how it is found again."""

from __future__ import annotations

import logging
from typing import Any

import gevent

from prouter.errors import AgentUnavailable, Conflict, PRouterError
from prouter.keeper.wire import Decoder
from prouter.runners.interface import Reports, Spawned
from prouter.runners.slurm.ends import Ends
from prouter.runners.slurm.follower import Follower
from prouter.runners.slurm.job import Job, JobState
from prouter.runners.slurm.node_link import NodeLink
from prouter.runners.slurm.starts import Starts
from prouter.runners.slurm.table import Table

__all__ = ["Nodes"]

_PATIENCE = 6.0
"""Seconds that a node has to connect again, a little more than it waits between its attempts."""

_log = logging.getLogger("prouter.runner")


class Nodes:
    """Serves the connections that the listener has authenticated.

    Args:
        reports: of the agent, for ports that jobs report.
    """

    def __init__(self, table: Table, follower: Follower, starts: Starts, ends: Ends, reports: Reports) -> None:
        self._table = table
        self._starts = starts
        self._follower = follower
        self._ends = ends
        self._reports = reports

    def secret_of(self, uid: str) -> str | None:
        """The secret of a job's present start; None if there is none."""
        job = self._table.get(uid)
        return job.secret if job is not None and job.state is not JobState.HELD else None

    def serve(self, connection: Any, hello: dict[str, Any], messages: list[dict[str, Any]], decoder: Decoder) -> None:
        """Serve a connection; return when it has ended, or was handed over."""
        job = self._table.get(hello["job"])
        if job is None or hello["kind"] not in ("control", "spare"):
            connection.close()
        elif hello["kind"] == "spare":
            if job.link is not None:
                job.link.add_spare(connection)
            else:
                connection.close()
        else:
            if str(hello.get("number")).isdigit():
                self._starts.runs_as(job, int(hello["number"]))
            on_event = self._events(job)
            link = NodeLink(job.uid, str(hello["node"]), connection, decoder, lambda event: on_event(link, event))
            self._control(job, link, messages)

    def link(self, job: Job) -> NodeLink:
        """The connection to the node of a running job.

        Raises:
            Conflict: the job does not run.
            AgentUnavailable: the node is not connected.
        """
        if job.state is not JobState.RUNNING or job.ending is not None:
            raise Conflict(f"job '{job.uid}' is not running", job=job.uid)
        if job.suspended:
            raise AgentUnavailable(
                f"Slurm has suspended job '{job.uid}', which answers once Slurm resumes it",
                job=job.uid,
                retry_after=10.0,
            )
        if job.link is None:
            job.linked.wait(_PATIENCE)
        link = job.link
        if link is not None:
            return link
        if job.state is not JobState.RUNNING:
            raise Conflict(f"job '{job.uid}' is not running", job=job.uid)
        node = job.spawned.node if job.spawned is not None else None
        raise AgentUnavailable(
            f"node {node}, where job '{job.uid}' runs, is not connected to the agent; {job.directory / 'batch.log'} on "
            "the agent's machine tells why, for example that the node cannot reach jobs.slurm.address",
            job=job.uid,
            retry_after=2.0,
        )

    def _control(self, job: Job, link: NodeLink, messages: list[dict[str, Any]]) -> None:
        if job.link is not None:
            job.link.close()
        job.link = link
        job.linked.set()
        _log.info("event=node_connected job=%s node=%s", job.uid, link.node)
        try:
            link.serve(messages)
        finally:
            if job.link is link:
                job.link = None
                job.linked.clear()
            if job.state is not JobState.ENDED:  # Else nothing is left that Slurm could tell.
                self._follower.soon()

    def _events(self, job: Job) -> Any:
        def on_event(link: NodeLink, message: dict[str, Any]) -> None:
            if job.state is JobState.ENDED:
                self._ended(link, message)
                return
            if message["event"] == "port":
                gevent.spawn(self._reported, job, message["port"])
                return
            if message.get("spawned") is not None:
                self._table.running(job, Spawned(job.uid, **message["spawned"]))
            if message.get("exit") is not None:
                gevent.spawn(self._ends.told_by_node, job, message["exit"])

        return on_event

    def _ended(self, link: NodeLink, message: dict[str, Any]) -> None:
        """Answer the node of a job that has ended for the agent: it had been given up, and its processes may run."""
        if message.get("exit") is not None:
            gevent.spawn(link.close)  # So the node knows that nobody waits for it.
        elif message["event"] in ("hello", "spawned"):
            _log.warning("event=ended_job_returned job=%s node=%s", link.job, link.node)
            link.notify("kill")

    def _reported(self, job: Job, port: int) -> None:
        """Pass on a port that the job reports, and the agent's answer."""
        refusal = ""
        try:
            self._reports.port(job.uid, port)
        except PRouterError as error:
            refusal = error.detail
        if job.link is not None:
            job.link.notify("reported", port=port, refusal=refusal)
