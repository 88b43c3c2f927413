"""Response heads of a job: found in its bytes, bounded in size and number, and corrected where that is safe.

Servers send, and browsers accept, more than llhttp does in its strict mode: lines that end with a bare LF (RFC 9112
section 2.2 lets a recipient accept them), whitespace before a colon (section 5.1: a proxy has to remove it), the same
framing stated twice, and the coding ``identity`` of RFC 2616. The proxy rewrites such a head and parses it again. It
refuses what two parsers could read differently, and folded lines (section 5.2), with an error that says why.

Request heads are never corrected: a client that frames a request loosely may be smuggling another one.
"""

from __future__ import annotations

from prouter.errors import JobUnreachable
from prouter.web.proxy.messages.heads import ResponseHead, parse_response

__all__ = ["MAX_HEAD", "MAX_INTERIM", "ResponseHeads", "head_end", "parse", "tidied"]

MAX_HEAD = 262144
"""Bytes of one head."""
MAX_INTERIM = 10
"""Interim responses (1xx) to one request: servers send one or two, and each costs the client and the router work."""
_MAX_FIELDS = 1000
"""Fields of one head."""
_MANY_FIELDS = 16384
"""Bytes of a head below which fields are not counted: parsing that many costs little."""


class ResponseHeads:
    """A reader of response heads: any interim ones, then the final one.

    Attributes:
        interim: number of interim responses so far.
    """

    __slots__ = ("_buffer", "_searched", "interim")

    def __init__(self) -> None:
        self._buffer = b""
        self.interim = 0
        self._searched = 0
        """Bytes of the buffer that were searched for the end of a head."""

    @property
    def pending(self) -> int:
        """Bytes that belong to no head returned so far."""
        return len(self._buffer)

    def add(self, data: bytes) -> None:
        """Add bytes of the job."""
        self._buffer = self._buffer + data if self._buffer else bytes(data)

    def rest(self) -> bytes:
        """Take what follows the last head."""
        rest, self._buffer = self._buffer, b""
        return rest

    def next(self) -> ResponseHead | None:
        """Return the next head, None if it is not complete.

        Raises:
            JobUnreachable: the bytes are no HTTP, too many, or hold too many interim responses. They are dropped.
        """
        data = self._buffer
        end = head_end(data, self._searched)
        try:
            if end < 0 or end > MAX_HEAD:
                _check_beginning(data)
                self._searched = max(0, len(data) - 3)
                return None
            head = parse(data[:end])
            if head.status < 200 and head.status != 101:
                self.interim += 1
                if self.interim > MAX_INTERIM:
                    raise _refused(f"more than {MAX_INTERIM} interim responses (1xx) came before it")
        except JobUnreachable:
            self._buffer = b""
            raise
        self._buffer = data[end:]
        self._searched = 0
        return head


def head_end(data: bytes, start: int = 0) -> int:
    """Return the offset after a head and its empty line, -1 if `data` does not hold all of it."""
    usual = data.find(b"\n\r\n", start)
    bare = data.find(b"\n\n", start, usual + 1 if usual >= 0 else len(data))
    if bare >= 0:
        return bare + 2
    return usual + 3 if usual >= 0 else -1


def parse(head: bytes) -> ResponseHead:
    """Parse a response head as tolerantly as browsers do.

    Raises:
        JobUnreachable: the head is not HTTP, or its framing is ambiguous.
    """
    if len(head) > _MANY_FIELDS and head.count(b"\n") > _MAX_FIELDS:
        raise _refused(f"its head has more than {_MAX_FIELDS} fields")
    try:
        return parse_response(head)
    except JobUnreachable:
        better = tidied(head)
        if better == head:
            raise
    parsed = parse_response(better)
    # A server that frames one response loosely may misplace its end, so its connection is not reused.
    return parsed._replace(connection=parsed.connection | {b"close"})


def tidied(head: bytes) -> bytes:
    """Return the head as a strict sender would send it. What is ambiguous stays as it is.

    Raises:
        JobUnreachable: a line is folded.
    """
    first, *lines = [line.removesuffix(b"\r") for line in head.split(b"\n")]
    fields: list[bytes] = []
    for line in lines:
        if line[:1] in (b" ", b"\t"):
            raise _refused("a line of its head begins with whitespace, as in folded fields")
        name, colon, value = line.partition(b":")
        fields.append(name.rstrip(b" \t") + colon + value if colon else line)
    fields = _joined_once(fields, b"transfer-encoding", b"identity")
    fields = _joined_once(fields, b"content-length")
    return b"\r\n".join([first, *fields])


def _joined_once(fields: list[bytes], name: bytes, means_nothing: bytes | None = None) -> list[bytes]:
    """Return the fields with all of one name joined into one, if all have the same value.

    Args:
        means_nothing: a value in lower case that counts as none.
    """
    values: list[bytes] = []
    others: list[bytes] = []
    for field in fields:
        key, _, value = field.partition(b":")
        if key.lower() == name:
            values += value.lower().split(b",")
        else:
            others.append(field)
    distinct = {value.strip(b" \t") for value in values} - {means_nothing}
    if not values or len(distinct) > 1:
        return fields
    return [*(b"%s: %s" % (name.title(), value) for value in distinct), *others]


def _check_beginning(data: bytes) -> None:
    """Refuse bytes that cannot become a head.

    Raises:
        JobUnreachable: they are too many or do not begin like a head.
    """
    if len(data) > MAX_HEAD:
        raise _refused(f"it has too large a head, more than {MAX_HEAD} bytes")
    if not b"HTTP/".startswith(data[:5]):
        raise _refused("it does not begin with 'HTTP/'")


def _refused(why: str) -> JobUnreachable:
    return JobUnreachable(f"the job's response is not valid HTTP: {why}", code="bad_response")
