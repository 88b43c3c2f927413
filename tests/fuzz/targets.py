"""What `make fuzz` tries: for each target a stand, and a case that is made from one seed."""

from __future__ import annotations

import tempfile
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import yaml

from prouter.access.gate import AccessGate
from prouter.access.roles import Role
from prouter.access.tokens import Token, hash_of
from prouter.agent.archives import pack
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.errors import InvalidRequest, JobUnreachable, ProtocolError, PRouterError
from prouter.fabric.calls import event_frame, read_event
from prouter.fabric.frames import CALL, EVENT, REPLY, Frame, decode, encode, pack_body, unpack_body
from prouter.transport.zmtp.codec import Zmtp, encode_message
from prouter.transport.zmtp.handshakes import opening
from prouter.web.proxy.addresses.forwarded import Forwarded, Origin
from prouter.web.proxy.addresses.mapping import Site
from prouter.web.proxy.addresses.rewrite import request_to_job
from prouter.web.proxy.messages.chunked import ChunkDecoder, ChunkError
from prouter.web.proxy.messages.heads import HeadTooLarge, parse_request, parse_response, take_request
from tests.fuzz.answers import any_answer, any_fields
from tests.fuzz.damage import damaged, pieces
from tests.fuzz.handshakes import handshakes
from tests.fuzz.test_broker import Stand
from tests.fuzz.values import any_value

__all__ = ["TARGETS", "Case"]

Case = Callable[[Random], None]
_CORPUS = Path(__file__).parents[1] / "data" / "http_attacks" / "requests.yaml"
_SAMPLES = Path(__file__).parents[1] / "data" / "archives"
_LIMIT = 16 * 1024
_ENOUGH = 200
"""Cases after which a stand that grows is made anew."""
_HTTP = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b":",
    b" ",
    b"\t",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: x\r\n",
]


def _frame(random: Random) -> Frame:
    kind = random.choice([CALL, REPLY, EVENT, *range(32)])
    sid, offset, ack = random.choices([0, 1, 2, 255, 2**31, 2**63, 2**64 - 1], k=3)
    body = {"id": "1", "op": "job.start", "args": {"x": any_value(random)}, "event": "job", "body": any_value(random)}
    payload = pack_body(body) if random.random() < 0.7 else random.randbytes(random.choice([0, 1, 50, 3000]))
    return Frame(kind, random.choice([0, 0, 1, 4, 5]), sid, offset, ack, payload)


@contextmanager
def frames() -> Iterator[Case]:
    """Damaged messages of frames: refused, or frames that are encoded as they were decoded."""

    def case(random: Random) -> None:
        parts = encode([_frame(random) for _ in range(random.randrange(1, 5))])
        at = random.randrange(len(parts))
        parts[at] = damaged(random, bytes(parts[at]))
        try:
            found = decode(parts)
        except ProtocolError:
            return
        assert decode(encode(found)) == found

    yield case


@contextmanager
def bodies() -> Iterator[Case]:
    """Damaged msgpack bodies of calls, replies and events."""

    def case(random: Random) -> None:
        whole = pack_body({"id": "1", "op": "x", "args": any_value(random), "value": any_value(random)})
        for payload in (damaged(random, whole), damaged(random, bytes(event_frame("job", {"x": 1}).payload))):
            with suppress(ProtocolError):
                assert all(isinstance(key, str) for key in unpack_body(payload))
            with suppress(ProtocolError):
                name, body = read_event(Frame(EVENT, payload=payload))
                assert isinstance(name, str)
                assert isinstance(body, dict)

    yield case


@contextmanager
def broker() -> Iterator[Case]:
    """A rogue agent's frames at the broker: an honest agent and its job do not change."""
    made: list[Any] = []

    def stand() -> Stand:
        if not made or len(made) > _ENOUGH or not made[0].rogue.ready:
            made[:] = [Stand()]
        made.append(None)
        return made[0]  # type: ignore[no-any-return]

    def case(random: Random) -> None:
        place = stand()
        for _ in range(random.randrange(1, 6)):
            wire = place.record()
            for name in random.sample(sorted(wire), random.randrange(4)):
                wire[name] = any_value(random)
            name = random.choice(["job", "jobs", "job.removed", "usage", "load", "strays", "x"])
            try:
                place.event(name, {"record": wire, "jobs": [wire, any_value(random)], "complete": False})
                place.rogue.say(Frame(random.choice([CALL, REPLY, EVENT]), payload=_frame(random).payload))
                place.rogue.say(_frame(random)._replace(type=random.randrange(CALL, 32)))
            except ProtocolError:
                made.clear()  # the shell closes such a connection
                return
        assert place.worker.ask("jobs.info", **place.job["at"]) == place.before
        assert place.honest.ready

    yield case


@contextmanager
def zmtp() -> Iterator[Case]:
    """Damaged ZMTP on the process's own loop, in pieces: messages, or an error of the protocol."""

    def case(random: Random) -> None:
        message = b"".join(encode_message([b"", random.randbytes(random.choice([0, 5, 300]))]))
        data = damaged(random, opening(b"DEALER", b"me") + message * 2, [b"\x06", b"\x05READY", b"NULL"])
        parser = Zmtp(b"ROUTER")
        with suppress(ProtocolError):
            for piece in pieces(random, data):
                for found in parser.receive(piece):
                    assert sum(map(len, found)) <= len(data)

    yield case


def _requests() -> list[bytes]:
    after = "Host: h\r\nConnection: close\r\n"
    found = []
    for entry in yaml.safe_load(_CORPUS.read_text()):
        text = entry["send"].replace("<CHUNKED>", "<POST>Transfer-Encoding: chunked\r\n\r\n").replace("<HTTP>", "/x")
        text = text.replace("<GET>", f"GET /x/a HTTP/1.1\r\n{after}").replace(
            "<POST>", f"POST /x/a HTTP/1.1\r\n{after}"
        )
        found.append(text.replace("<HOST>", "h").replace("<OWN>", "j.h").encode("latin-1"))
    return found


@contextmanager
def heads() -> Iterator[Case]:
    """Damaged request heads: refused, or what the job gets is read again as the same request."""
    corpus = _requests()
    origin = Origin("203.0.113.9", 80, trusted=False)

    def site() -> Site:
        raise AssertionError("no address is asked for")

    def case(random: Random) -> None:
        data = random.choice(corpus)
        if random.random() < 0.3:
            data = b"GET /a HTTP/1.1\r\nHost: h\r\n" + b"".join(line + b"\r\n" for line in any_fields(random)) + b"\r\n"
        try:
            found = take_request(damaged(random, data, _HTTP).lstrip(b"\r\n"), _LIMIT)
        except (InvalidRequest, HeadTooLarge):
            return
        if found is None or b"destination" in found[1].lower() or b"if:" in found[1].lower():
            return
        head = found[0]
        sent = request_to_job(Forwarded(head, origin), head.target, b"/p", site=site, mark=b"me")
        assert sent.count(b"\r\n\r\n") == 1
        assert b"\0" not in sent
        assert sent.count(b"\r") == sent.count(b"\n") == sent.count(b"\r\n")
        if head.method == b"CONNECT":
            return  # the proxy refuses it
        again = parse_request(sent)
        assert (again.method, again.target, again.body, again.length) == (
            head.method,
            head.target,
            head.body,
            head.length,
        )
        assert again.host == head.host

    yield case


@contextmanager
def responses() -> Iterator[Case]:
    """Damaged response heads: refused as a bad response, or framed in one way."""

    def case(random: Random) -> None:
        data = any_answer(random)[0].partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        try:
            head = parse_response(damaged(random, data, _HTTP))
        except JobUnreachable:
            return
        assert 100 <= head.status <= 999
        assert b"\n" not in head.reason
        assert not any(b"\n" in name + value or b"\0" in name + value for name, value in head.headers)

    yield case


@contextmanager
def chunks() -> Iterator[Case]:
    """Damaged chunked bodies: the same bytes, or an error, however they are cut into pieces."""

    def read(parts: list[bytes], bare_lf: bool) -> tuple[bytes, bool, str]:
        decoder, body = ChunkDecoder(bare_lf=bare_lf), b""
        try:
            for part in parts:
                if not decoder.complete:
                    body += b"".join(map(bytes, decoder.feed(part)))
        except ChunkError as error:
            return b"", False, str(error)
        return body, decoder.complete, ""

    def case(random: Random) -> None:
        sizes = random.choices([1, 2, 31, 1024, 20000], k=random.randrange(5))
        data = b"".join(b"%x\r\n%s\r\n" % (size, random.randbytes(size)) for size in sizes) + b"0\r\n\r\n"
        data = damaged(random, data, [b"\r\n", b"\n", b"0\r\n\r\n", b";", b"\t"])
        bare_lf = random.random() < 0.5
        whole, cut = read([data], bare_lf), read(pieces(random, data), bare_lf)
        assert whole == cut or (whole[2] and cut[2])

    yield case


@contextmanager
def archives() -> Iterator[Case]:
    """Damaged archives: unpacked or refused, and nothing outside the sandbox is touched."""
    # Read where it is needed: that module wants bsdtar for its own tests.
    from prouter.agent.archives import ArchiveLimits, Unpacker

    limits = ArchiveLimits(sandbox_size=16 << 20, members=2000)
    with tempfile.TemporaryDirectory(prefix="prf-") as name:
        place = Path(name)
        source = Sandbox(place / "source")
        source.create()
        (source.root / "dir").mkdir()
        (source.root / "dir" / "text").write_bytes(b"text " * 3000)
        (source.root / "dir" / "link").symlink_to("text")
        kinds = [b"".join(pack(source, archive_format=kind)) for kind in ("tar", "tar.gz", "tar.zst", "zip")]
        kinds += [path.read_bytes() for path in sorted(_SAMPLES.glob("*.zip")) if path.stat().st_size < 20_000]

        def case(random: Random) -> None:
            sandbox = Sandbox(place / "place" / "sandbox")
            sandbox.create()
            (place / "place" / "secret").write_text("untouched")
            archive = damaged(random, random.choice(kinds), [b"../secret", b"/etc", b"..\\", b"\0" * 512])
            try:
                with Unpacker(sandbox, path=b"in", limits=limits) as unpacker:
                    for piece in pieces(random, archive):
                        unpacker.feed(piece)
                    unpacker.finish()
            except PRouterError as error:
                if error.status >= 500:
                    raise
            finally:
                sandbox.remove()
            assert [path.name for path in (place / "place").iterdir()] == ["secret"]
            assert (place / "place" / "secret").read_text() == "untouched"

        yield case


@contextmanager
def credentials() -> Iterator[Case]:
    """Damaged fields with a token: nobody is let in who does not present exactly that token, once."""
    token = b"prt_0123456789abcdefghijklmnopqrstuvwxyzABCDEF"
    words = [b"Bearer ", b"basic ", b",", b" ", b"=", b"\xff", b":", token]

    def presents(value: bytes) -> bool:
        scheme, _, rest = value.strip().partition(b" ")
        if scheme.lower() == b"bearer":
            return rest.strip() == token
        try:
            return scheme.lower() == b"basic" and b64decode(rest.strip(), validate=True).split(b":", 1)[1:] == [token]
        except ValueError:
            return False

    with tempfile.TemporaryDirectory(prefix="prf-") as name:
        gate = AccessGate(Path(name), [Token("1", "alice", Role.USER, hash_of(token))])

        def case(random: Random) -> None:
            value = random.choice([b"Bearer " + token, b"Basic " + b64encode(b"x:" + token)])
            fields = [(random.choice([b"Authorization", b"AUTHORIZATION"]), damaged(random, value, words))]
            if random.random() < 0.2:
                fields.append((random.choice([b"authorization", b"Cookie"]), damaged(random, value, words)))
            found = [value for name, value in fields if name.lower() == b"authorization"]
            let_in = gate.authenticate(fields)
            assert (let_in is not None) == (len(found) == 1 and presents(found[0])), fields

        yield case


@contextmanager
def documented() -> Iterator[Case]:
    """Requests that schemathesis makes from the OpenAPI document: responses are as documented, for every role."""
    from tests.fuzz.documented import DocumentedApi  # late: no other target needs processes and schemathesis

    with tempfile.TemporaryDirectory(prefix="prf-") as name, ExitStack() as held:
        api = DocumentedApi(Path(name), held)

        def case(random: Random) -> None:
            api.try_operation(random.choice(api.labels), random.getrandbits(32), examples=10)

        yield case


TARGETS: dict[str, Callable[[], AbstractContextManager[Case]]] = {
    "frames": frames,
    "bodies": bodies,
    "broker": broker,
    "zmtp": zmtp,
    "curve": handshakes,
    "heads": heads,
    "responses": responses,
    "chunks": chunks,
    "credentials": credentials,
    "archives": archives,
    "documented": documented,
}
"""By name; a case raises if something else than a refusal comes of it."""
