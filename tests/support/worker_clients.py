"""Clients that each talk to one known worker: a connection belongs to the worker that accepted it."""

from __future__ import annotations

import json
import select
from collections.abc import Collection
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import psutil

from tests.support.processes import Router, wait_until

__all__ = ["Client", "clients_of_workers"]


class Client:
    """A connection that a worker has accepted."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").rpartition(":")
        self.http = HTTPConnection(host, int(port), timeout=20)
        self.http.connect()
        self.http.auto_open = 0  # another connection could be another worker's
        self.port = self.http.sock.getsockname()[1]

    def send(self, method: str, path: str, body: Any = None) -> None:
        self.http.request(method, path, None if body is None else json.dumps(body))

    def answer(self) -> tuple[int, Any]:
        """Read the response; return its status and body, which is decoded if it is JSON."""
        response: HTTPResponse = self.http.getresponse()
        body = response.read()
        is_json = body and "json" in (response.getheader("Content-Type") or "")
        return response.status, json.loads(body) if is_json else body.decode()

    @property
    def answered(self) -> bool:
        """Whether a part of the response has arrived."""
        return bool(select.select([self.http.sock], [], [], 0)[0])

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        self.send(method, path, body)
        return self.answer()

    def close(self) -> None:
        self.http.close()


def clients_of_workers(router: Router, pids: Collection[int]) -> dict[int, Client]:
    """Return a client for each of these workers."""
    clients: dict[int, Client] = {}
    spare: list[Client] = []

    def found_all() -> bool:
        client = Client(router.url)
        client.ask("GET", "/healthz")
        pid = next((pid for pid in pids if _serves(pid, client.port)), None)
        if pid is None or clients.setdefault(pid, client) is not client:
            spare.append(client)  # kept for now: the next one goes to a worker that has fewer
        return len(clients) == len(pids)

    try:
        wait_until(found_all)
    finally:
        for client in spare:
            client.close()
    return clients


def _serves(pid: int, client_port: int) -> bool:
    return any(
        found.raddr and found.raddr[1] == client_port for found in psutil.Process(pid).net_connections(kind="tcp")
    )
