"""This process's ZeroMQ context, with one I/O thread, never one that crossed a fork."""

from __future__ import annotations

import os

import zmq

from prouter.process.memory import keep_freed_memory

__all__ = ["context", "destroy_context"]

_MOST_SOCKETS = 65_536
"""ZeroMQ sockets of a process: one for each agent that is dialled, and two for its monitor."""

_contexts: dict[int, zmq.Context[zmq.Socket[bytes]]] = {}
"""By process id: a child of fork finds none, since its parent's I/O thread does not exist there."""


def context() -> zmq.Context[zmq.Socket[bytes]]:
    """Return this process's context, made at the first call."""
    pid = os.getpid()
    found = _contexts.get(pid)
    if found is None or found.closed:
        keep_freed_memory()
        found = _contexts[pid] = zmq.Context()
        found.set(zmq.MAX_SOCKETS, _MOST_SOCKETS)
        # Each message wakes the I/O thread. As one of the kernel's batch threads it does not interrupt the loop that
        # sends, which then hands over several messages per wake-up (sched(7)).
        found.set(zmq.THREAD_SCHED_POLICY, os.SCHED_BATCH)
    return found


def destroy_context(linger: float = 0) -> None:
    """Close all ZeroMQ sockets of this process; blocks until what they queued has left, at most `linger` seconds."""
    found = _contexts.pop(os.getpid(), None)
    if found is not None:
        found.destroy(int(linger * 1000))
