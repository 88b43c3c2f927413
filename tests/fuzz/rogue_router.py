"""A fake router to which an agent links, and which sends what a test tells it to."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import zmq

from prouter.fabric.frames import (
    CALL,
    DATA,
    EVENT,
    FIN,
    HELLO,
    OPEN,
    PING,
    PONG,
    REPLY,
    RESET,
    RESUME,
    WELCOME,
    Frame,
    decode,
    encode,
    pack_body,
    unpack_body,
)
from tests.support.processes import Agent

__all__ = ["CONNECTION", "RogueRouter"]

CONNECTION = "c" * 32
_PATIENCE = 30.0
_WINDOW = 1024 * 1024


class RogueRouter:
    """Takes the link of one agent; its methods must be called from one thread.

    Attributes:
        welcome: what an agent that dials is told.
        hellos: how often one did.
        worker: on whose behalf streams are opened; see `new_worker`.
        log: what the agent has written down so far.
    """

    def __init__(self) -> None:
        self.welcome: dict[str, Any] = {
            "router": {"uid": "r", "name": "r", "platform": {}},
            "connection": CONNECTION,
            "incarnation": "b" * 32,
            "mode": "SERVER",
            "draining": False,
        }
        self.hellos = 0
        self.worker = b""
        self.streams: dict[int, list[Frame]] = {}
        self._replies: dict[str, dict[str, Any]] = {}
        self._pongs: set[int] = set()
        self._numbers = itertools.count(1)
        self._rid = b""
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.set_hwm(0)  # or it would drop what comes too fast
        self._port: int = self._socket.bind_to_random_port("tcp://127.0.0.1")

    def start_agent(self, directory: Path) -> Agent:
        """Start an agent that links to this router."""
        started: list[Agent] = []

        def start() -> None:
            started.append(Agent(directory, f"127.0.0.1:{self._port}", {"fabric.heartbeat": 10.0}))

        thread = threading.Thread(target=start)
        thread.start()
        while thread.is_alive():
            self.hear(0.05)
        (agent,) = started
        return agent

    def close(self) -> None:
        """Release the port."""
        self._socket.close()

    # -- saying

    def say(self, *frames: Frame, route: bytes = b"") -> None:
        """Send one message."""
        self._socket.send_multipart([self._rid, route, *encode(frames)])

    def event(self, name: Any, body: Any) -> None:
        """Send an event of any kind."""
        self.say(Frame(EVENT, payload=pack_body({"event": name, "body": body})))

    def call(self, op: Any, args: Any) -> str:
        """Call the agent and return the call's id."""
        call_id = f"call-{next(self._numbers)}"
        self.say(Frame(CALL, payload=pack_body({"id": call_id, "op": op, "args": args})))
        return call_id

    def new_worker(self) -> None:
        """Return the route of another worker, which has opened no stream yet."""
        self.worker = f"{next(self._numbers):032x}".encode()
        self.event("workers", {"workers": [self.worker.decode()]})
        self.say(Frame(RESUME), route=self.worker)

    def open(self, target: Any) -> int:
        """Open a stream without data and return its id."""
        sid = next(self._numbers)
        opened = Frame(OPEN, sid=sid, offset=_WINDOW, payload=pack_body(target))
        self.say(opened, Frame(DATA, FIN, sid=sid), route=self.worker)
        return sid

    # -- hearing

    def hear(self, seconds: float = 0.0) -> bool:
        """Receive a message if one arrives, and return whether one did."""
        if not self._socket.poll(int(seconds * 1000)):
            return False
        rid, route, *parts = self._socket.recv_multipart()
        for frame in decode(parts):
            if frame.type == HELLO:
                self.hellos += 1
                self._rid = rid
                self.say(Frame(WELCOME, payload=pack_body(self.welcome)))
            elif frame.type == PING:
                self.say(Frame(PONG, offset=frame.offset))
            elif frame.type == PONG:
                self._pongs.add(frame.offset)
            elif frame.type == REPLY:
                body = unpack_body(frame.payload)
                self._replies[body["id"]] = body
            elif route:
                self.streams.setdefault(frame.sid, []).append(frame)
        return True

    def until(self, condition: Any, what: str) -> None:
        """Receive messages until a condition holds."""
        end = time.monotonic() + _PATIENCE
        while not condition():
            assert time.monotonic() < end, what
            self.hear(0.1)

    def answer(self, call_id: str) -> dict[str, Any]:
        """Return the agent's reply to a call."""
        self.until(lambda: call_id in self._replies, f"no answer to {call_id}")
        return self._replies.pop(call_id)

    def over(self, sid: int) -> bool:
        """Return whether the agent has ended its side of a stream."""
        return any(frame.type == RESET or frame.flags & FIN for frame in self.streams.get(sid, ()))

    def settle(self) -> None:
        """Wait until the agent has processed every message, and answers a call."""
        number = 1_000_000 + next(self._numbers)
        self.say(Frame(PING, offset=number))
        self.until(lambda: number in self._pongs, "the agent does not answer")
