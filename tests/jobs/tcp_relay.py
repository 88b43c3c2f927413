"""A job server that forwards every connection to another port of this machine, byte by byte.

Run it as ``tcp_relay.py PORT``: it listens on ``$PORT`` of loopback.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Copy until either end closes."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def relay(client: socket.socket) -> None:
    """Serve one connection."""
    with client, socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as server:
        back = threading.Thread(target=pump, args=(server, client), daemon=True)
        back.start()
        pump(client, server)
        back.join()


listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])), backlog=128)
while True:
    connection, _ = listener.accept()
    threading.Thread(target=relay, args=(connection,), daemon=True).start()
