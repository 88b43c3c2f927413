"""Listens on two ports, one of them for IPv6 only, and does what the first line of a connection says.

It writes the ports into the file ``ports``. At SIGUSR1 it closes the first one.
"""

import contextlib
import hashlib
import json
import os
import signal
import socket
import struct
import threading


def serve(peer: socket.socket) -> None:
    with peer, peer.makefile("rb") as lines:
        command, *arguments = lines.readline().split()
        if command == b"echo":
            while data := lines.read1(262144):
                peer.sendall(data)
        elif command == b"digest":
            peer.sendall(hashlib.sha256(lines.read()).hexdigest().encode())
        elif command == b"end":
            peer.sendall(b"all")
            peer.shutdown(socket.SHUT_WR)
            with open("late", "wb") as file:
                file.write(lines.read() + b".")
        elif command == b"send":
            peer.sendall(b"x" * int(arguments[0]))
        elif command == b"reset":
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif command == b"hold":
            stopped.wait()
        elif command == b"ended":  # ended once the client's connection is
            with contextlib.suppress(OSError):
                lines.read()
            with open("ended", "wb") as file:
                file.write(b".")


def accept(server: socket.socket) -> None:
    while True:
        try:
            peer, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=serve, args=(peer,), daemon=True).start()


def close(*_: object) -> None:
    servers[0].shutdown(socket.SHUT_RDWR)
    servers[0].close()
    with open("closed", "wb"):
        pass


stopped = threading.Event()
servers = [socket.create_server(("127.0.0.1", 0))]
if socket.has_ipv6:
    with contextlib.suppress(OSError):
        servers.append(socket.create_server(("::1", 0), family=socket.AF_INET6))
signal.signal(signal.SIGUSR1, close)
for one in servers:
    threading.Thread(target=accept, args=(one,), daemon=True).start()
with open("ports.new", "w") as file:
    json.dump([one.getsockname()[1] for one in servers], file)
os.rename("ports.new", "ports")
while True:
    signal.pause()
