"""nginx as users deploy it: the configuration of deploy/nginx, started in a directory of its own.

Used by the benchmarks and by tests/integration/test_nginx.py, so that what is measured and tested is what is shipped.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["DEPLOY", "Nginx", "NginxFailed", "render", "several_routers"]

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "nginx"

MAIN = """\
daemon off;
pid {prefix}/nginx.pid;
error_log stderr warn;
worker_processes {workers};
worker_rlimit_nofile 20000;
{user}
events {{ worker_connections 16384; }}
http {{
    client_body_temp_path {prefix}/body;
    proxy_temp_path {prefix}/proxy;
    fastcgi_temp_path {prefix}/fastcgi;
    uwsgi_temp_path {prefix}/uwsgi;
    scgi_temp_path {prefix}/scgi;
    include conf.d/*.conf;
}}
"""


class NginxFailed(Exception):
    """nginx did not start; the text holds its output."""


def several_routers(upstreams: Sequence[str]) -> Callable[[Path], None]:
    """Return how to adapt the configuration to several routers, as docs/several-routers.md says."""

    def adapt(main: Path) -> None:
        text = (DEPLOY / "several-routers.conf").read_text()
        text, count = re.subn(
            r"(    server )router-1\.example\.org:8888 (max_fails=.*?;).*\n(    server router-[23].*\n){2}",
            lambda match: "".join(f"{match[1]}{upstream} {match[2]}\n" for upstream in upstreams),
            text,
        )
        if count != 2:
            raise ValueError("several-routers.conf has not two blocks with three routers each")
        (main.parent / "conf.d" / "several-routers.conf").write_text(text)
        site = main.parent / "conf.d" / "prouter.conf"
        one, count = re.subn(r"\nupstream prouter \{.*?\n\}\n", "", site.read_text(), flags=re.DOTALL)
        if count != 1 or "    # include snippets/prouter-several.conf;" not in one:
            raise ValueError("prouter.conf cannot be adapted to several routers")
        site.write_text(
            one.replace("    # include snippets/prouter-several.conf;", "    include snippets/prouter-several.conf;")
        )

    return adapt


def render(prefix: Path, upstream: str, listen: str, *, workers: str = "auto", users: str | None = None) -> Path:
    """Lay out the shipped configuration under `prefix` as on a server, with this upstream and listening address.

    Args:
        prefix: stands for /etc/nginx; temporary files go there too.
        upstream: what follows ``server`` in the upstream block: ``HOST:PORT`` or ``unix:PATH``.
        listen: what follows ``listen``: ``HOST:PORT``.
        users: contents of the password file; None lets everybody in.

    Returns:
        the main configuration file.

    Raises:
        ValueError: a line that users are told to change is not there.
    """
    text = (DEPLOY / "prouter.conf").read_text()
    passwords = prefix / "prouter.htpasswd"
    for shipped, mine in (
        ("server 127.0.0.1:8888;", f"server {upstream};"),
        ("listen 80", f"listen {listen}"),
        ("/etc/nginx/prouter.htpasswd", str(passwords)),
        ('auth_basic "pRouter"', 'auth_basic "pRouter"' if users is not None else "auth_basic off"),
    ):
        if shipped not in text:
            raise ValueError(f"prouter.conf has no line {shipped!r}")
        text = text.replace(shipped, mine)
    (prefix / "conf.d").mkdir(parents=True)
    (prefix / "conf.d" / "prouter.conf").write_text(text)
    if users:
        passwords.write_text(users)
    shutil.copytree(DEPLOY / "snippets", prefix / "snippets")
    server = prefix / "snippets" / "prouter-server.conf"
    logs = {"/var/log/nginx/prouter.log": "access.log", "/var/log/nginx/prouter-error.log": "error.log"}
    for log, mine in logs.items():
        if log not in server.read_text():
            raise ValueError(f"prouter-server.conf does not log to {log}")
        server.write_text(server.read_text().replace(log, f"{prefix}/{mine}"))
    user = "user root;" if os.geteuid() == 0 else ""
    main = prefix / "nginx.conf"
    main.write_text(MAIN.format(prefix=prefix, workers=workers, user=user))
    return main


class Nginx:
    """A running nginx in front of `upstream`; `close` ends it.

    Args:
        prefix: an empty or missing directory for its files.
        upstream: see `render`.
        port: of the loopback address to listen on.
        environ: its environment.
        users: see `render`.
        adapt: changes the laid out configuration, given its main file, before nginx reads it.

    Raises:
        NginxFailed: it refused the configuration or did not listen within 10 s.
    """

    def __init__(
        self,
        prefix: Path,
        upstream: str,
        port: int,
        *,
        environ: dict[str, str] | None = None,
        users: str | None = None,
        adapt: Callable[[Path], None] | None = None,
    ) -> None:
        self.port = port
        self.main = render(prefix, upstream, f"127.0.0.1:{port}", users=users)
        if adapt is not None:
            adapt(self.main)
        self.stderr = prefix / "stderr"
        with self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                ["nginx", "-e", "stderr", "-p", str(prefix), "-c", str(self.main)],
                stdout=stderr,
                stderr=stderr,
                env=environ,
                start_new_session=True,
            )
        try:
            self._wait_listening()
        except BaseException:
            self.close()
            raise

    def _wait_listening(self) -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.02)
        raise NginxFailed(self.stderr.read_text())

    def close(self) -> None:
        """End nginx and its workers."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
