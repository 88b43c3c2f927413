"""The heads of a job's answer: found in its bytes, bounded in size and number, and put right where that is safe.

Browsers accept more than llhttp does in its strict mode, and servers send it: lines that end with a bare LF (RFC 9112
section 2.2 lets a recipient accept them), whitespace before a colon (section 5.1: a proxy must remove it), the same
framing said twice, and the coding ``identity`` of RFC 2616. Such a head is rewritten and parsed again. What could be
read in two ways is refused, folded lines as well (section 5.2), and the error says why.

Requests are never put right: a client that frames a request loosely may be smuggling another one.
"""

from __future__ import annotations

from prouter.errors import JobUnreachable
from prouter.web.proxy.heads import ResponseHead, parse_response

__all__ = ["MAX_HEAD", "MAX_INTERIM", "ResponseHeads", "head_end", "parse", "tidied"]

MAX_HEAD = 262144
"""Bytes of one head."""
MAX_INTERIM = 10
"""Interim answers (1xx) to one request: servers send one or two, and each costs the client and us work."""
_MAX_FIELDS = 1000
"""Fields of one head."""
_MANY_FIELDS = 16384
"""Bytes of a head too small to hold so many fields that counting them would pay."""


class ResponseHeads:
    """Takes a job's bytes, gives the heads in them: any interim ones, and the answer's own.

    Attributes:
        interim: how many interim answers there were.
    """

    __slots__ = ("_buffer", "_searched", "interim")

    def __init__(self) -> None:
        self._buffer = b""
        self.interim = 0
        self._searched = 0
        """Bytes of the buffer in which no head ends."""

    @property
    def pending(self) -> int:
        """Bytes taken that belong to no head given so far."""
        return len(self._buffer)

    def add(self, data: bytes) -> None:
        """Take bytes of the job."""
        self._buffer = self._buffer + data if self._buffer else bytes(data)

    def rest(self) -> bytes:
        """What follows the last head that was given."""
        rest, self._buffer = self._buffer, b""
        return rest

    def next(self) -> ResponseHead | None:
        """The next head, None when it is not complete yet.

        Raises:
            JobUnreachable: what came is no HTTP, is too large, or holds too many interim answers. It is dropped.
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
                    raise _refused(f"more than {MAX_INTERIM} interim answers (1xx) came before it")
        except JobUnreachable:
            self._buffer = b""
            raise
        self._buffer = data[end:]
        self._searched = 0
        return head


def head_end(data: bytes, start: int = 0) -> int:
    """Where a head ends, its empty line included; -1 when it does not end in `data`."""
    usual = data.find(b"\n\r\n", start)
    bare = data.find(b"\n\n", start, usual + 1 if usual >= 0 else len(data))
    if bare >= 0:
        return bare + 2
    return usual + 3 if usual >= 0 else -1


def parse(head: bytes) -> ResponseHead:
    """Parse a response head, one that browsers accept included.

    Raises:
        JobUnreachable: it is not HTTP, or its framing is ambiguous.
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
    # A server that frames one answer loosely is not trusted with a second one over the same connection.
    return parsed._replace(connection=parsed.connection | {b"close"})


def tidied(head: bytes) -> bytes:
    """The head as a strict sender would have sent it. What stays ambiguous stays as it was.

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
    fields = _said_once(fields, b"transfer-encoding", b"identity")
    fields = _said_once(fields, b"content-length")
    return b"\r\n".join([first, *fields])


def _said_once(fields: list[bytes], name: bytes, means_nothing: bytes | None = None) -> list[bytes]:
    """The fields with all of one name joined to one, if they all say the same.

    Args:
        means_nothing: a value, in lower case, that is as good as none.
    """
    values: list[bytes] = []
    others: list[bytes] = []
    for field in fields:
        key, _, value = field.partition(b":")
        if key.lower() == name:
            values += value.lower().split(b",")
        else:
            others.append(field)
    said = {value.strip(b" \t") for value in values} - {means_nothing}
    if not values or len(said) > 1:
        return fields
    return [*(b"%s: %s" % (name.title(), value) for value in said), *others]


def _check_beginning(data: bytes) -> None:
    """Refuse what can become no head.

    Raises:
        JobUnreachable: it is too large or does not begin like one.
    """
    if len(data) > MAX_HEAD:
        raise _refused(f"it has too large a head, more than {MAX_HEAD} bytes")
    if not b"HTTP/".startswith(data[:5]):
        raise _refused("it does not begin with 'HTTP/'")


def _refused(why: str) -> JobUnreachable:
    return JobUnreachable(f"the job's answer is not valid HTTP: {why}", code="bad_response")
