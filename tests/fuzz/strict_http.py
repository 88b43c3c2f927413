"""A client that accepts only correct HTTP/1.1 (RFC 9112), written independently of the code that it tests."""

from __future__ import annotations

import re
import socket
from typing import NamedTuple

__all__ = ["Answer", "NotHttp", "StrictClient"]

_STATUS = re.compile(rb"HTTP/1\.1 ([1-9]\d\d) [\t \x21-\x7e\x80-\xff]*\r\n")
_FIELD = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*"
    rb"((?:[\x21-\x7e\x80-\xff](?:[\t \x21-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*\r\n"
)
_LENGTH = re.compile(rb"\d{1,18}")
_CHUNK = re.compile(rb"[0-9a-fA-F]{1,16}")
_SHOWN = 200
_PATIENCE = 20.0


class NotHttp(Exception):
    """The received bytes are not a correct response."""


class Answer(NamedTuple):
    """A final response; names are in lower case. `complete` is False if the connection broke before its end."""

    status: int
    fields: list[tuple[bytes, bytes]]
    body: bytes
    complete: bool


class _Ended(Exception):
    """The connection was closed."""


class StrictClient:
    """A client that sends requests one after another over one connection, as long as the responses allow it."""

    def __init__(self, url: str) -> None:
        self._place = url.removeprefix("http://")
        self._sock: socket.socket | None = None
        self._data = b""

    def request(self, method: str, target: str) -> Answer:
        """Ask and read the one answer that is due.

        Raises:
            NotHttp: it is none, or something follows it.
            ConnectionError: there is none.
        """
        if self._sock is None:
            host, _, port = self._place.rpartition(":")
            self._sock = socket.create_connection((host, int(port)), _PATIENCE)
            self._data = b""
        self._sock.sendall(f"{method} {target} HTTP/1.1\r\nHost: {self._place}\r\n\r\n".encode("latin-1"))
        try:
            return self._answer(method)
        except (_Ended, ConnectionError) as error:
            self.close()
            raise ConnectionError("no answer") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _answer(self, method: str) -> Answer:
        status, fields = self._head()
        while 100 <= status < 200:
            if status == 101:
                raise NotHttp("another protocol, unasked")
            status, fields = self._head()
        named = [name for name, _ in fields]
        if named.count(b"content-length") + named.count(b"transfer-encoding") > 1:
            raise NotHttp(f"several framings: {fields}")
        closes = any(name == b"connection" and value.lower() == b"close" for name, value in fields)
        complete = True
        body = bytearray()
        try:
            self._body(method, status, dict(fields), closes, body)
        except (_Ended, ConnectionResetError):
            complete = False
        self._end(closes, complete)
        return Answer(status, fields, bytes(body), complete)

    def _head(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        lines = [self._line()]
        if not (status := _STATUS.fullmatch(lines[0])):
            raise NotHttp(f"status line {lines[0][:_SHOWN]!r}")
        fields = []
        while (line := self._line()) != b"\r\n":
            if not (field := _FIELD.fullmatch(line)):
                raise NotHttp(f"field {line[:_SHOWN]!r}")
            fields.append((field[1].lower(), field[2]))
        return int(status[1]), fields

    def _body(self, method: str, status: int, values: dict[bytes, bytes], closes: bool, body: bytearray) -> None:
        length, coding = values.get(b"content-length"), values.get(b"transfer-encoding")
        if status == 204 and (length or coding):
            raise NotHttp("204 with a framing")
        if length is not None and not _LENGTH.fullmatch(length):
            raise NotHttp(f"length {length[:_SHOWN]!r}")
        if coding is not None and coding != b"chunked":
            raise NotHttp(f"coding {coding[:_SHOWN]!r}")
        if method == "HEAD" or status in (204, 304):
            return
        if length is not None:
            self._take(int(length), body)
        elif coding is not None:
            self._chunks(body)
        elif not closes:
            raise NotHttp("no framing, and the connection stays")
        else:
            while self._more():
                pass
            body += self._data
            self._data = b""

    def _chunks(self, body: bytearray) -> None:
        while True:
            size = self._line()[:-2]
            if not _CHUNK.fullmatch(size):
                raise NotHttp(f"chunk size {size[:_SHOWN]!r}")
            self._take(int(size, 16), body)
            if self._line() != b"\r\n":
                raise NotHttp("a chunk that does not end, or a trailer")
            if int(size, 16) == 0:
                return

    def _end(self, closes: bool, complete: bool) -> None:
        """Fail if bytes follow the response, at once or before an announced close."""
        if not complete:
            self.close()
            return
        sock = self._sock
        assert sock is not None
        if closes:
            while self._more():
                pass
            self.close()
        else:
            sock.setblocking(False)
            try:
                self._data += sock.recv(65536)
            except BlockingIOError:
                pass
            finally:
                sock.settimeout(_PATIENCE)
        if self._data:
            raise NotHttp(f"bytes after the end {self._data[:_SHOWN]!r}")

    # -- bytes

    def _line(self) -> bytes:
        while b"\r\n" not in self._data:
            if not self._more():
                raise _Ended
        line, _, self._data = self._data.partition(b"\r\n")
        return line + b"\r\n"

    def _take(self, size: int, into: bytearray) -> None:
        while len(self._data) < size:
            if not self._more():
                into += self._data
                raise _Ended
        into += self._data[:size]
        self._data = self._data[size:]

    def _more(self) -> bool:
        assert self._sock is not None
        piece = self._sock.recv(65536)
        self._data += piece
        return bool(piece)
