"""Broken networks between an agent and its router: real ones in network namespaces, and a TCP proxy for the rest.

`Cable` is a pair of virtual Ethernet devices with an agent's network namespace at one end; packets are dropped with
nftables. `Wire` forwards TCP connections, slowly, late, or not at all, and needs no privileges. For what happens to
single packets there is tests/faults/packets.py.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import select
import socket
import subprocess
import threading
import time
from collections import deque

from tests.support.programs import in_ci, missing

__all__ = ["Cable", "Wire", "run", "why_no_namespaces"]

_TABLE = "prouter_test"


def why_no_namespaces() -> str:
    """Return why this machine cannot make network namespaces; empty if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    lacking = missing("ip", "nft")
    if lacking and not in_ci():
        return f"not installed: {lacking}"
    name = f"prt-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"no network namespaces here: {tried.stderr.strip()}"
    try:
        rules = f"add table inet {_TABLE}"
        able = subprocess.run(["ip", "netns", "exec", name, "nft", rules], capture_output=True, text=True, check=False)
        return f"nftables do not work here: {able.stderr.strip()}" if able.returncode else ""
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


class Cable:
    """A network namespace, connected with the host by a cable of its own. Use it as a context.

    Attributes:
        host: the host's address at the cable.
        prefix: a command line begun with this runs in the namespace.
    """

    _numbers = itertools.count()

    def __init__(self) -> None:
        number = (os.getpid() * 8 + next(self._numbers)) % (64 * 256)
        network = f"100.{64 + number // 256}.{number % 256}"  # shared address space, RFC 6598
        self.name = f"prt-{os.getpid()}-{number}"
        self._device = f"prt{number}h"
        self._inside = f"prt{number}n"
        self._network = network
        self.host = f"{network}.1"
        self.prefix = ("ip", "netns", "exec", self.name)
        self._addresses = itertools.count(2)

    def __enter__(self) -> Cable:
        run("ip", "netns", "add", self.name)
        try:
            self._plug()
            run("ip", "addr", "add", f"{self.host}/24", "dev", self._device)
            run("ip", "link", "set", self._device, "up")
            run("ip", "-n", self.name, "link", "set", "lo", "up")
            run("ip", "-n", self.name, "link", "set", self._inside, "up")
            self.change_address()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _plug(self) -> None:
        """Make the pair of devices."""
        run("ip", "link", "add", self._device, "type", "veth", "peer", "name", self._inside, "netns", self.name)

    def __exit__(self, *_: object) -> None:
        for command in (("ip", "link", "del", self._device), ("ip", "netns", "del", self.name)):
            subprocess.run(command, check=False, capture_output=True)

    def change_address(self) -> None:
        """Give the namespace another address instead of its present one."""
        run("ip", "-n", self.name, "addr", "flush", "dev", self._inside, "scope", "global")
        run("ip", "-n", self.name, "addr", "add", f"{self._network}.{next(self._addresses)}/24", "dev", self._inside)

    def cut(self) -> None:
        """Drop every packet, in both directions."""
        self._rules("drop", "drop")

    def cut_one_way(self) -> None:
        """Drop what the agent sends; what the router sends still arrives."""
        self._rules("", "drop")

    def lose(self, percent: int) -> None:
        """Drop `percent` of the packets in each direction, at random."""
        rule = f"numgen random mod 100 < {percent} drop"
        self._rules(rule, rule)

    def repair(self) -> None:
        """Let everything through again."""
        run(*self.prefix, "nft", "delete", "table", "inet", _TABLE)

    def _rules(self, arriving: str, leaving: str) -> None:
        script = f"""
            table inet {_TABLE}
            delete table inet {_TABLE}
            table inet {_TABLE} {{
                chain input {{
                    type filter hook input priority 0
                    iifname lo accept
                    {arriving}
                }}
                chain output {{
                    type filter hook output priority 0
                    oifname lo accept
                    {leaving}
                }}
            }}
            """
        run(*self.prefix, "nft", "-f", "-", script=script)


def run(*command: str, script: str = "") -> None:
    """Run a command, which must succeed."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, input=script)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


class Wire:
    """Forwards TCP connections to `target`; what it does to them can be changed at any time. Use it as a context.

    Attributes:
        address: ``host:port`` to connect to.
        delay: seconds each byte takes, in each direction.
        jitter: seconds more, at random.
        rate: bytes per second of each connection and direction, 0 for any number.
        holes: swallow everything: connections stay open, nothing arrives.
        late: seconds by which a byte came late at worst, since this process had no processor.
    """

    def __init__(self, target: str, *, delay: float = 0.0, jitter: float = 0.0, rate: float = 0.0) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self.delay, self.jitter, self.rate = delay, jitter, rate
        self.holes = False
        self.late = 0.0
        self._closed = False
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._listen(0)
        self.address = "{}:{}".format(*self._bound)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()

    def refuse(self) -> None:
        """Reset all connections and refuse new ones."""
        self._closed = True
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self.cut()

    def accept(self) -> None:
        """Accept connections again after `refuse`."""
        self._listen(self._bound[1])

    def cut(self) -> None:
        """Reset all connections; new ones are accepted."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _listen(self, port: int) -> None:
        self._listener = listener = socket.create_server(("127.0.0.1", port))
        listener.settimeout(0.2)
        self._bound = listener.getsockname()
        self._closed = False
        threading.Thread(target=self._serve, args=(listener,), daemon=True).start()

    def _serve(self, listener: socket.socket) -> None:
        while listener.fileno() >= 0:
            try:
                client, _ = listener.accept()
            except OSError:
                continue
            try:
                server = socket.create_connection(self._target, 5)
            except OSError:
                client.close()
                continue
            for sock in (client, server):
                sock.settimeout(None)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        """Move bytes in one direction; in flight are as many as a real wire of this length holds, at most 4 MiB."""
        waiting: deque[tuple[float, bytes]] = deque()
        size, due, over = 0, 0.0, False
        try:
            while waiting or not over:
                now = time.monotonic()
                if self.holes:
                    time.sleep(0.05)
                    continue
                if waiting and waiting[0][0] <= now:
                    at, data = waiting.popleft()
                    self.late = max(self.late, now - at)
                    size -= len(data)
                    sink.sendall(data)
                    continue
                pause = waiting[0][0] - now if waiting else 0.2
                if over or size > 4 * 1024 * 1024:
                    time.sleep(pause)
                    continue
                if select.select([source], [], [], pause)[0]:
                    data = source.recv(16384)
                    over = not data
                    size += len(data)
                    begin = max(time.monotonic(), due)
                    due = begin + (len(data) / self.rate if self.rate else 0.0)
                    at = due + self.delay + random.uniform(0, self.jitter)
                    waiting.append((max(at, waiting[-1][0]) if waiting else at, data))
            sink.shutdown(socket.SHUT_WR)
        except (OSError, ValueError):
            for sock in (source, sink):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
