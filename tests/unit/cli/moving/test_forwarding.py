"""A local port whose connections go through ``Upgrade: tcp``, against a stand-in that speaks that contract."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from prouter.cli.moving.forwarding import Forwarder
from prouter.cli.moving.splicing import splice

SIZE = 8 << 20
REFUSAL = (
    b"HTTP/1.1 404 Not Found\r\nContent-Type: application/problem+json\r\nX-PRouter-Error: no_such_port\r\n"
    b'Content-Length: 61\r\n\r\n{"status": 404, "code": "no_such_port", "detail": "no port 7"}'
)


class StandIn:
    """A router that upgrades each connection and then echoes; it may refuse or drop the first ones."""

    def __init__(self, first: list[bytes], certificate: Path | None = None) -> None:
        self.heads: list[str] = []
        self._first = first
        self._listener = socket.create_server(("127.0.0.1", 0))
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._listener = context.wrap_socket(self._listener, server_side=True, do_handshake_on_connect=False)
        self.url = f"{'http' if certificate is None else 'https'}://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._echo, args=(self._listener.accept()[0],), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            data = b""
            while b"\r\n\r\n" not in data:
                data += connection.recv(4096)
            head, _, rest = data.partition(b"\r\n\r\n")
            self.heads.append(head.decode())
            if self._first:
                connection.sendall(self._first.pop(0))
                return
            connection.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nhi " + rest
            )
            while piece := connection.recv(65536):
                if piece == b"break":
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                connection.sendall(piece)
            connection.sendall(b"end")

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def forwarded(
    *first: bytes, token: str | None = "prt_x", certificate: Path | None = None, trusted: bool = True
) -> Iterator[tuple[StandIn, Callable[[], socket.socket]]]:
    stand_in = StandIn(list(first), certificate)
    ca = str(certificate) if certificate is not None and trusted else None
    forwarder = Forwarder(stand_in.url + "/base/", token, ca, "/jobs/c/j/tcp/http", ("127.0.0.1", 0), patience=10.0)
    threading.Thread(target=forwarder.serve, daemon=True).start()
    try:
        yield stand_in, lambda: socket.create_connection(forwarder.address, 10)
    finally:
        forwarder.close()
        stand_in.close()


def send_and_end(connection: socket.socket, data: bytes) -> None:
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)


def everything(connection: socket.socket) -> bytes:
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return data


def test_the_request_and_both_directions_with_half_close() -> None:
    with forwarded() as (stand_in, connect), connect() as client:
        client.sendall(b"there")
        client.shutdown(socket.SHUT_WR)
        assert everything(client) == b"hi thereend"
        [head] = stand_in.heads
        lines = head.split("\r\n")
        assert lines[0] == "GET /base/jobs/c/j/tcp/http HTTP/1.1"
        assert {"Connection: Upgrade", "Upgrade: tcp", "Authorization: Bearer prt_x"} <= set(lines[1:])


def test_a_connection_that_breaks_does_not_look_complete() -> None:
    with forwarded() as (_, connect), connect() as client:
        assert client.recv(3) == b"hi "
        client.sendall(b"break")
        with pytest.raises(ConnectionResetError):
            everything(client)


def test_much_both_ways_byte_for_byte() -> None:
    block = hashlib.sha256(b"x").digest() * (SIZE // 32)
    with forwarded() as (_, connect), connect() as client:
        sender = threading.Thread(target=send_and_end, args=(client, block))
        sender.start()
        received = everything(client)
        sender.join(10)
    assert received == b"hi " + block + b"end"


def test_a_router_that_restarts_is_dialled_again() -> None:
    away = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    with forwarded(b"", away) as (stand_in, connect), connect() as client:
        assert client.recv(3) == b"hi "
        assert len(stand_in.heads) == 3


def test_a_refusal_ends_that_connection_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    with forwarded(REFUSAL) as (_, connect):
        with connect() as client:
            assert everything(client) == b""
        assert "no port 7" in capsys.readouterr().err
        with connect() as client:
            assert client.recv(3) == b"hi "


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the key and certificate of 127.0.0.1, which is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stand-in")])
    now = datetime.datetime.now(datetime.timezone.utc)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    built = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(address, critical=False).sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = tmp_path_factory.mktemp("tls") / "stand-in.pem"
    file.write_bytes(secret + built.public_bytes(pem))
    return file


def test_much_both_ways_over_tls(certificate: Path) -> None:
    block = hashlib.sha256(b"y").digest() * (SIZE // 32)
    with forwarded(certificate=certificate) as (_, connect), connect() as client:
        sender = threading.Thread(target=client.sendall, args=(block,))
        sender.start()
        received = b""
        while len(received) < SIZE + 3:
            received += client.recv(65536)
        sender.join(10)
    assert received == b"hi " + block


def test_a_certificate_that_is_not_trusted_gets_no_token(certificate: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with forwarded(certificate=certificate, trusted=False) as (stand_in, connect):
        with connect() as client:
            assert everything(client) == b""
        assert "is not trusted" in capsys.readouterr().err
        assert not stand_in.heads


def test_a_lost_connection_ends_the_other_side() -> None:
    client, near = socket.socketpair()
    server, far = socket.socketpair()
    thread = threading.Thread(target=splice, args=(near, server), daemon=True)
    thread.start()
    far.close()
    client.close()
    thread.join(10)
    assert not thread.is_alive()
