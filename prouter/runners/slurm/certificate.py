"""The agent's TLS key and certificate, by which nodes know it. Both are made once and kept in the agent's state."""

from __future__ import annotations

import datetime
import os
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from gevent.ssl import SSLContext

__all__ = ["Certificate"]

_FILE = "node-listener.pem"
_YEARS = 30
_SKEW = datetime.timedelta(days=7)
"""How far the clocks of nodes may be behind."""


class Certificate:
    """A key and its self-signed certificate.

    Args:
        state_dir: directory of the agent alone.

    Attributes:
        public: the certificate in PEM.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / _FILE
        if not self._path.exists():
            self._make()
        text = self._path.read_text("ascii")
        self.public = text[text.index("-----BEGIN CERTIFICATE") :]

    def context(self) -> SSLContext:
        """TLS for the listener."""
        context = SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(str(self._path))
        return context

    def _make(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pRouter agent")])
        now = datetime.datetime.now(datetime.timezone.utc)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(now + datetime.timedelta(days=365 * _YEARS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        new = self._path.with_suffix(".new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(secret + certificate.public_bytes(serialization.Encoding.PEM))
        new.rename(self._path)
