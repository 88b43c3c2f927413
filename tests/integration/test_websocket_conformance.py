"""WebSockets frame by frame: a client gets the same bytes through the router as from the job itself.

The cases follow those of Autobahn's fuzzing client: framing, control frames, reserved bits and opcodes, fragmentation,
UTF-8, the closing handshake, limits, compression.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import Agent, Router
from tests.support.raw_http import Raw
from tests.support.websocket_frames import BINARY, CONTINUATION, PING, PONG, TEXT, RawWebSocket, close, frame


@dataclass(frozen=True)
class Case:
    """What to send and what to expect.

    Attributes:
        replies: frames that come back before `end` is sent; None when the server is to end the connection by itself.
        code: the status with which the server must close; None for any, or none.
    """

    pieces: list[bytes]
    replies: int | None = None
    code: int | None = None
    headers: str = ""
    end: bytes = close()


def bytewise(data: bytes) -> list[bytes]:
    return [data[index : index + 1] for index in range(len(data))]


def good(*pieces: bytes, replies: int = 1, headers: str = "") -> Case:
    return Case(list(pieces), replies, 1000, headers)


def bad(*pieces: bytes, code: int = 1002) -> Case:
    return Case(list(pieces), None, code)


def framing() -> dict[str, Case]:
    cases = {}
    for size in (0, 1, 125, 126, 127, 128, 65535, 65536, 1 << 20):
        cases[f"text-{size}"] = good(frame(TEXT, b"*" * size))
        cases[f"binary-{size}"] = good(frame(BINARY, b"\xfe" * size))
    message = frame(TEXT, b"every byte a segment " * 7)
    cases["bytewise"] = good(*bytewise(message))
    for position in range(1, 15):
        cases[f"split-at-{position}"] = good(message[:position], message[position:])
    cases["huge"] = good(frame(BINARY, bytes(range(256)) * 65536))
    cases["long-form-of-a-short-length"] = Case([frame(TEXT, b"ab", length_bytes=8)], 1)
    cases["unmasked"] = bad(frame(TEXT, b"hello", masked=False))
    cases["over-the-limit"] = Case([frame(BINARY, b"x" * 100, claimed=(64 << 20) + 1, length_bytes=8)], None, 1009)
    cases["impossible-length"] = Case([frame(BINARY, b"x", claimed=(1 << 64) - 1, length_bytes=8)])
    cases["many-in-one-segment"] = good(b"".join(frame(TEXT, b"%d" % n) for n in range(500)), replies=500)
    return cases


def control() -> dict[str, Case]:
    cases = {}
    for size in (0, 1, 125):
        cases[f"ping-{size}"] = good(frame(PING, b"\x00\xff" * (size // 2) + b"p" * (size % 2)))
        cases[f"pong-{size}"] = good(frame(PONG, b"u" * size), replies=0)
    cases["ping-126"] = bad(frame(PING, b"p" * 126))
    cases["ping-fragmented"] = bad(frame(PING, b"a", fin=False))
    cases["ping-bytewise"] = good(*bytewise(frame(PING, b"\x80 payload")))
    cases["ten-pings"] = good(b"".join(frame(PING, b"%d" % n) for n in range(10)), replies=10)
    for opcode in (0x3, 0x4, 0x5, 0x6, 0x7, 0xB, 0xC, 0xD, 0xE, 0xF):
        cases[f"opcode-{opcode:x}"] = bad(frame(opcode, b"x"))
        cases[f"opcode-{opcode:x}-later"] = Case([frame(TEXT, b"first")], 1, 1002, end=frame(opcode))
    for reserved in range(1, 8):
        cases[f"reserved-{reserved}"] = bad(frame(TEXT, b"x", reserved=reserved))
        cases[f"reserved-{reserved}-ping"] = bad(frame(PING, b"x", reserved=reserved))
    return cases


def fragments() -> dict[str, Case]:
    first, middle, last = (
        frame(TEXT, b"one ", fin=False),
        frame(CONTINUATION, b"two ", fin=False),
        frame(CONTINUATION, b"three"),
    )
    return {
        "fragments-2": good(first, last),
        "fragments-3": good(first, middle, last),
        "fragments-3-bytewise": good(*bytewise(first + middle + last)),
        "fragments-empty": good(frame(TEXT, fin=False), frame(CONTINUATION, fin=False), frame(CONTINUATION)),
        "fragments-1000": good(frame(BINARY, b"0", fin=False), *[frame(CONTINUATION, b"x", fin=False)] * 1000, last),
        "fragments-with-ping": good(first, frame(PING, b"between"), last, replies=2),
        "fragments-with-pings-at-once": good(first + frame(PING, b"1") + middle + frame(PING, b"2") + last, replies=3),
        "fragments-with-pong": good(first, frame(PONG, b"x"), last),
        "continuation-of-nothing": bad(last),
        "unfinished-continuation-of-nothing": bad(middle, last),
        "new-message-within-one": bad(first, frame(TEXT, b"other")),
        "continuation-after-the-last": Case([first, last], 1, 1002, end=middle),
    }


def utf8() -> dict[str, Case]:
    word = "κόσμε 𝄞 \ufffd".encode()
    cases = {
        "utf8": good(frame(TEXT, word)),
        "utf8-bytewise": good(*bytewise(frame(TEXT, word))),
        "utf8-split-within-a-character": good(*(frame(TEXT, word[:1], fin=False), frame(CONTINUATION, word[1:]))),
        "utf8-cut-by-a-fragment-for-good": bad(frame(TEXT, word[:3], fin=False), frame(CONTINUATION), code=1007),
    }
    for name, payload in {
        "overlong": b"\xc0\xaf",
        "surrogate": b"\xed\xa0\x80",
        "above-unicode": b"\xf4\x90\x80\x80",
        "lonely-continuation": b"ab\x80",
        "cut": b"\xe2\x82",
        "invalid-byte": b"\xff",
    }.items():
        cases[f"not-utf8-{name}"] = bad(frame(TEXT, payload), code=1007)
        cases[f"binary-{name}"] = good(frame(BINARY, payload))
    return cases


def closing() -> dict[str, Case]:
    cases = {"close-empty": Case([close(None)]), "close-1000-twice": Case([close(1000) + close(1000)], None, 1000)}
    for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999):
        cases[f"close-{code}"] = Case([close(code, "adiós".encode())], None, code)
    for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535):
        cases[f"close-{code}"] = bad(close(code))
    cases["close-longest-reason"] = Case([close(1000, b"r" * 123)], None, 1000)
    cases["close-too-long-a-reason"] = bad(close(1000, b"r" * 124))
    cases["close-one-byte"] = bad(frame(0x8, b"\x03"))
    cases["close-reason-not-utf8"] = bad(close(1000, b"\xff"), code=1007)
    cases["close-fragmented"] = bad(frame(0x8, b"", fin=False))
    cases["ping-after-close"] = Case([close() + frame(PING, b"late")], None, 1000)
    cases["message-after-close"] = Case([close() + frame(TEXT, b"late")], None, 1000)
    return cases


def deflated(data: bytes) -> bytes:
    """One message compressed (RFC 7692 section 7.2.1)."""
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\x00\x00\xff\xff")


def compression() -> dict[str, Case]:
    cases = {}
    payload = deflated(b"again and again " * 1000)
    for name, offer in {
        "plain": "permessage-deflate",
        "no-takeover": "permessage-deflate; client_no_context_takeover; server_no_context_takeover",
        "window": "permessage-deflate; server_max_window_bits=9; client_max_window_bits",
        "several": "x-unknown, permessage-deflate; server_max_window_bits=10, permessage-deflate",
    }.items():
        headers = f"Sec-WebSocket-Extensions: {offer}\r\n"
        cases[f"deflate-{name}"] = good(frame(TEXT, payload, reserved=4), headers=headers)
        cases[f"deflate-{name}-uncompressed"] = good(frame(TEXT, b"as it is"), headers=headers)
    headers = "Sec-WebSocket-Extensions: permessage-deflate\r\n"
    halves = (frame(TEXT, payload[:9], reserved=4, fin=False), frame(CONTINUATION, payload[9:]))
    cases["deflate-fragments"] = good(*halves, headers=headers)
    cases["deflate-broken"] = Case([frame(TEXT, b"\xff\xff\xff", reserved=4)], None, 1002, headers)
    cases["deflate-not-negotiated"] = bad(frame(TEXT, payload, reserved=4))
    cases["deflate-refused"] = good(
        frame(TEXT, b"plain"), headers="Sec-WebSocket-Extensions: permessage-deflate; nonsense=1\r\n"
    )
    return cases


CASES = {**framing(), **control(), **fragments(), **utf8(), **closing(), **compression()}
PROTOCOLS = ["v1", "v2", "v1, v2", "nothing, v2", "nothing", "nothing, v1, v2"]


@pytest.fixture(scope="module")
def job(router: Router, agent: Agent, jobs: Path) -> tuple[str, str, str]:
    """The job's own URL, the router's, and the job's root below that."""
    path = router.serve(agent.uid, jobs / "websocket_server.py")
    (port,) = router.get(path + "/info").json()["ports"]
    return f"http://127.0.0.1:{port}", router.url, path + "/http"


def play(case: Case, url: str, target: str) -> tuple[list[bytes], bytes]:
    """Play a case: the handshake's answer, and everything the server sent."""
    with RawWebSocket(url, target, case.headers) as ws:
        ws.send_pieces(case.pieces)
        if case.replies is None:
            return ws.answer, ws.read_to_end()
        seen = b""
        for _ in range(case.replies):
            first, payload = ws.read_frame()
            seen += bytes((first,)) + payload
        ws.send_pieces([case.end])
        return ws.answer, seen + ws.read_to_end()


@pytest.mark.parametrize("name", CASES)
def test_a_client_sees_no_router(job: tuple[str, str, str], name: str) -> None:
    direct, routed, root = job
    case = CASES[name]
    expected = play(case, direct, "/echo")
    if case.code is not None:
        assert case.code.to_bytes(2, "big") in expected[1].rpartition(b"\x88")[2]
    assert play(case, routed, root + "/echo") == expected


@pytest.mark.parametrize("offered", PROTOCOLS)
def test_the_job_chooses_the_subprotocol(job: tuple[str, str, str], offered: str) -> None:
    direct, routed, root = job
    for headers in (
        f"Sec-WebSocket-Protocol: {offered}\r\n",
        "".join(f"Sec-WebSocket-Protocol: {name.strip()}\r\n" for name in offered.split(",")),
    ):
        with RawWebSocket(direct, "/echo", headers) as there, RawWebSocket(routed, root + "/echo", headers) as here:
            assert here.answer == there.answer


KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
ASKED = "Connection: Upgrade\r\nUpgrade: websocket\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        ASKED + "Sec-WebSocket-Version: 13\r\n",
        ASKED + KEY,
        ASKED + KEY + "Sec-WebSocket-Version: 8\r\n",
        ASKED + "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: short\r\n",
    ],
)
def test_a_handshake_that_the_job_refuses_is_its_answer(job: tuple[str, str, str], headers: str) -> None:
    direct, routed, root = job

    def ask(url: str, target: str) -> tuple[list[bytes], bytes]:
        with Raw(url) as raw:
            raw.request("GET", target, headers)
            lines = raw.read_until(b"\r\n\r\n").split(b"\r\n")
            fields = dict(line.lower().split(b": ") for line in lines[1:-2])
            kept = [line for line in lines if not line.lower().startswith((b"date:", b"connection:"))]
            return kept, raw.read_exactly(int(fields[b"content-length"]))

    assert ask(routed, root + "/echo") == ask(direct, "/echo")
