"""Random responses of job servers, correct and broken, made from a seed; and a server that sends them."""

from __future__ import annotations

from random import Random

__all__ = ["POISON", "SERVER", "any_answer", "any_fields"]

POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
"""Bytes that must never reach a client."""

_NAMES = """A-IM Accept Accept-Charset Accept-Encoding Accept-Language Accept-Patch Accept-Post Accept-Ranges
Access-Control-Allow-Credentials Access-Control-Allow-Headers Access-Control-Allow-Methods Access-Control-Allow-Origin
Access-Control-Expose-Headers Access-Control-Max-Age Age Allow ALPN Alt-Svc Alt-Used Authentication-Info Authorization
C-Man C-Opt Cache-Control Cache-Status CDN-Cache-Control Clear-Site-Data Client-Cert Close Connection Content-Base
Content-Digest Content-Disposition Content-Encoding Content-ID Content-Language Content-Length Content-Location
Content-MD5 Content-Range Content-Security-Policy Content-Type Cookie Cookie2 Cross-Origin-Opener-Policy DASL Date DAV
Delta-Base Depth Destination Digest DPoP Early-Data ETag Expect Expect-CT Expires Forwarded From Host HTTP2-Settings If
If-Match If-Modified-Since If-None-Match If-Range IM Keep-Alive Label Last-Event-ID Last-Modified Link Location
Lock-Token Max-Forwards Memento-Datetime MIME-Version NEL OData-Version Origin Origin-Agent-Cluster Overwrite P3P
Permissions-Policy Pragma Prefer Preference-Applied Priority Proxy-Authenticate Proxy-Authentication-Info
Proxy-Authorization Proxy-Connection Proxy-Status Range Referer Referrer-Policy Refresh Report-To Repr-Digest
Retry-After Sec-WebSocket-Accept Sec-WebSocket-Extensions Sec-WebSocket-Key Sec-WebSocket-Protocol Server Server-Timing
Service-Worker-Allowed Set-Cookie Set-Cookie2 Signature SLUG SoapAction SourceMap Status Status-URI
Strict-Transport-Security Sunset Surrogate-Control TE Timeout Trailer Transfer-Encoding TTL Upgrade URI User-Agent Vary
Via Want-Digest Warning WWW-Authenticate X-Accel-Redirect X-Content-Type-Options X-Forwarded-For X-Forwarded-Host
X-Forwarded-Port X-Forwarded-Prefix X-Forwarded-Proto X-Frame-Options
X-PRouter-Error X-PRouter-Via X-Request-ID X-Sendfile X-SourceMap"""
"""Header fields of HTTP's registries, and some that proxies and applications invented."""

_VALUES = [
    b"", b"0", b"1", b"2", b"-1", b"+2", b"0x2", b"2, 2", b"2,3", b"9" * 20, b"chunked", b"Chunked", b"gzip, chunked",
    b"identity", b"close", b"keep-alive", b"keep-alive, x-y", b"content-length", b"transfer-encoding, close",
    b"upgrade", b"websocket", b"/", b"/x?y#z", b"//evil/x", b"http://127.0.0.1/x", b"http://", b"http:///x",
    b"../x", b"0; url=/x", b"5;URL='/x", b"</x>; rel=next, </y>", b"<" * 50,
    b"a=b; Path=/; Domain=x", b"a=b; path=x; path=/y; ;=;", b"=",
    b";" * 100, b'"', b"*", b"no-cache", b"text/html", b"bytes 0-1/2", b'W/"x"', b'Basic realm="x', b"x" * 4096,
    b"x" * 65536, b"x" * 131072, b"x" * 262144, b"x" * 300000,
]  # fmt: skip
_BROKEN = [
    b"a\r\nX-Y: 1", b"a\nX-Y: 1", b"a\rX-Y: 1", b"a\r\n\r\n" + POISON, b"a\n\n" + POISON, b"a\0b", b"a\x0bb", b"\r\n x",
]  # fmt: skip
_JUNK = [
    b"\r", b"\n", b"\0", b" ", b"\t", b":", b"\r\n", b"\x0b", b"\x80", b",", b";", b"\r\n\r\n", b"\n\n", b"\n\r\n",
]  # fmt: skip
_BEFORE = [
    b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n", b"\r\n", b"\n", b" ",
]  # fmt: skip
_STATUSES = [*[200] * 24, 99, 100, 101, 199, 201, 204, 205, 206, 301, 302, 304, 400, 401, 404, 407, 426, 500, 599, 999]
_VERSIONS = [*[b"HTTP/1.1"] * 25, b"HTTP/1.0", b"HTTP/2.0", b"http/1.1", b"HTTP/1.2"]
_REASONS = [*[b" OK"] * 8, b"", b" ", b" \xe9", b" a\tb", b" " + b"x" * 9000]
_COLONS = [*[b": "] * 10, b":", b":\t", b" : ", b"\t: "]
_LAST = [
    *[b"0\r\n\r\n"] * 5,
    b"0\r\nX-Trailer: 1\r\n\r\n",
    b"0;x=y\r\n\r\n",
    b"0\r\n",
    b"0\n\n",
    b"0" * 20 + b"\r\n\r\n",
]
_TOKEN = b"!#$%&'*+-.^_`|~09AZaz"
_REPEATED = [*[1] * 12, 2, 3, 200, 999, 1001]

SERVER = r"""
import os, pickle, socket, threading
with open("answers", "rb") as stored:
    answers = pickle.load(stored)
server = socket.create_server(("127.0.0.1", int(os.environ["PORT"])), backlog=100)
def serve(client):
    data = b""
    client.settimeout(0.1)
    try:
        while True:
            while b"\r\n\r\n" not in data:
                piece = client.recv(65536)
                if not piece:
                    return
                data += piece
            head, _, data = data.partition(b"\r\n\r\n")
            name = head.split()[1].rpartition(b"/")[2]
            if name.startswith(b"good"):
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(name), name))
                continue
            answer, stays = answers[int(name)]
            client.sendall(answer)
            if not stays:
                return
    except OSError:
        pass
    finally:
        client.close()
while True:
    client, _ = server.accept()
    threading.Thread(target=serve, args=(client,), daemon=True).start()
"""
"""Source of a server that sends response N for a path that ends with N, and a correct one for ``goodN``."""


def any_answer(random: Random) -> tuple[bytes, bool]:
    """Return the bytes of a response, and whether the server keeps the connection open after them."""
    body = b"ok" if random.random() < 0.8 else random.randbytes(random.choice([0, 10, 5000]))
    framing = random.choice([*["length"] * 5, *["chunked"] * 3, "close"])
    lines = any_fields(random)
    if framing == "length":
        lines.append(b"Content-Length: %d" % len(body))
    elif framing == "chunked":
        lines.append(b"Transfer-Encoding: chunked")
        pieces = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (body[:1], body[1:]) if piece]
        body = b"".join(pieces) + random.choice(_LAST)
    first = b"%s %d%s" % (random.choice(_VERSIONS), random.choice(_STATUSES), random.choice(_REASONS))
    data = b"".join(line + b"\r\n" for line in [first, *lines]) + b"\r\n" + body
    if random.random() < 0.3:
        return _spoilt(random, data), False
    return data, first.startswith(b"HTTP/1.1") and body.endswith((b"ok", b"0\r\n\r\n"))


def any_fields(random: Random) -> list[bytes]:
    """Return the lines of a response head."""
    lines: list[bytes] = []
    for _ in range(random.choice([0, 1, 1, 1, 2, 3])):
        name = random.choice(_NAMES.split()).encode()
        if random.random() < 0.15:
            name = bytes(random.choices(_TOKEN, k=random.choice([1, 5, 40, 300, 70000])))
        name = random.choice([name, name, name.lower(), name.upper()])
        value = random.choice(_VALUES)
        if random.random() < 0.2:
            value = random.choice([random.randbytes(random.choice([1, 4, 20])), *_BROKEN])
        repeated = random.choice(_REPEATED) if len(value) < 100 and len(name) < 100 else 1
        lines += [name + random.choice(_COLONS) + value for _ in range(repeated)]
    return lines


def _spoilt(random: Random, data: bytes) -> bytes:
    """Return the bytes with something inserted, or with a part missing."""
    how = random.randrange(6)
    head = data.index(b"\r\n\r\n")
    if how == 0:
        return random.choice(_BEFORE) + data
    if how == 1:
        return data + random.choice([POISON, b"\r\n" + POISON, b"x", b"\r\n"])
    if how == 2:
        return data[: random.randrange(len(data))]
    for _ in range(random.choice([1, 1, 2, 4])):
        at = random.randrange(head)
        junk = random.choice(_JUNK) if how < 5 else b""
        data = data[:at] + junk + data[at + (how > 3) :]
    return data
