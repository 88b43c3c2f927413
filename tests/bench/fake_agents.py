"""Many agents in one process: linked, alive, without jobs; `python -m tests.bench.fake_agents ENDPOINT COUNT`.

Each has its own connection and session, as a real agent has; none can run a job. Prints ``linked COUNT`` once all are
welcome.
"""

from __future__ import annotations

import sys
import time
import uuid

import zmq

from prouter.fabric.calls import event_frame
from prouter.fabric.frames import Frame, decode, encode
from prouter.fabric.session import Refused, Session, Welcomed

__all__ = ["FakeAgent", "main"]

HEARTBEAT = 2.0
SWEEP = 0.1
"""Seconds between two looks at all sockets."""


class FakeAgent:
    """One linked agent."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, number: int) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)
        self.linked = False
        hello = {
            "kind": "agent",
            "uid": f"bench-agent-{number}",
            "name": f"bench agent {number}",
            "incarnation": uuid.uuid4().hex,
            "platform": {
                "system": "Linux",
                "node": f"node-{number}",
                "release": "6",
                "version": "1",
                "machine": "x86_64",
            },
            "properties": {"rack": number % 40, "gpu": number % 3 == 0},
            "version": "1.0",
            "capacity": {"max": None},
            "draining": False,
            "token": "",
        }
        self.session = Session(time.monotonic(), HEARTBEAT, hello)
        self.send(self.session.start())

    def send(self, frames: list[Frame]) -> None:
        """Send frames to the broker."""
        if frames:
            self.socket.send_multipart([b"", *encode(frames)])

    def look(self, now: float) -> None:
        """Receive what arrived, then let the session do what is due.

        Raises:
            SystemExit: the router refused.
        """
        while True:
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            for frame in decode(parts[1:]):
                frames, event = self.session.receive(frame, now)
                self.send(frames)
                if isinstance(event, Refused):
                    sys.exit(f"refused: {event.code} {event.text}")
                if isinstance(event, Welcomed):
                    self.linked = True
                    self.send([event_frame("jobs", {"jobs": [], "complete": True})])
        self.send(self.session.tick(now)[0])


def main(endpoint: str, count: int) -> None:
    """Link them and keep them alive until killed."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, count + 16)
    agents: list[FakeAgent] = []
    told = False
    while True:
        now = time.monotonic()
        for number in range(len(agents), min(count, len(agents) + 50)):
            agents.append(FakeAgent(context, endpoint, number))
        for agent in agents:
            agent.look(now)
        if not told and len(agents) == count and all(agent.linked for agent in agents):
            print(f"linked {count}", flush=True)
            told = True
        time.sleep(max(0.0, SWEEP - (time.monotonic() - now)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
