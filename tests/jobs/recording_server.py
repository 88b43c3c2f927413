"""A job server that records exactly what arrives, and tells each client which request it answers.

Standard library only. It listens on ``127.0.0.1:$PORT``. For each request it appends a line of JSON to the file
``record`` in its working directory: ``{"connection": number, "data": hexadecimal}``. The response's body is the request
line. Bytes that arrive on a connection and belong to no request are recorded when the connection ends.

It is as lenient as careless servers are: bare LF ends a line, the first of two framing fields counts, and a body that
it was not told of becomes the next request. What reaches it must be beyond doubt even so.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import threading
from collections.abc import Iterator

_END = re.compile(rb"\r?\n\r?\n")
_FRAMING = re.compile(rb"(?im)^(content-length|transfer-encoding)[ \t]*:[ \t]*([^\r\n]*)")
_LAST_CHUNK = re.compile(rb"(?:\A|\n)0+[^\n]*\n(?:[^\r\n]+\r?\n)*\r?\n")
_CONTINUE = re.compile(rb"(?im)^expect[ \t]*:[ \t]*100-continue")
_lock = threading.Lock()


def record(connection: int, data: bytes) -> None:
    """Append what arrived to the record."""
    with _lock, open("record", "a") as file:
        file.write(json.dumps({"connection": connection, "data": data.hex()}) + "\n")


def requests(client: socket.socket) -> Iterator[bytes]:
    """Yield the requests of a connection, then what is left of its bytes."""
    data = b""

    def more() -> None:
        nonlocal data
        piece = client.recv(65536)
        if not piece:
            raise EOFError
        data += piece

    try:
        while True:
            while (end := _END.search(data)) is None:
                more()
            head, framing = data[: end.end()], _FRAMING.search(data[: end.end()])
            if _CONTINUE.search(head):
                client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            size = end.end()
            if framing is not None and framing[1].lower() == b"content-length":
                size += int(framing[2])
                while len(data) < size:
                    more()
            elif framing is not None:
                while (last := _LAST_CHUNK.search(data[size:])) is None:
                    more()
                size += last.end()
            taken, data = data[:size], data[size:]
            yield taken
    except (EOFError, OSError, ValueError):
        if data:
            yield data


def serve(client: socket.socket, number: int) -> None:
    """Record and answer all requests of a connection."""
    for data in requests(client):
        record(number, data)
        line = re.split(rb"\r?\n", data, maxsplit=1)[0]
        body = b"" if line.startswith(b"HEAD ") else line
        try:
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(line), body))
        except OSError:
            break
    client.close()


def main() -> None:
    """Serve for ever."""
    with socket.create_server(("127.0.0.1", int(os.environ["PORT"])), backlog=100) as server:
        for number in itertools.count():
            client, _ = server.accept()
            threading.Thread(target=serve, args=(client, number), daemon=True).start()


if __name__ == "__main__":
    main()
