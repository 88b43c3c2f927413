"""What `prouter doctor` says about a router with a wrong clock behind a proxy that buffers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from prouter.cli.checks import machine
from prouter.cli.checks import router as router_checks
from prouter.cli.remote.connection import Chosen
from prouter.client import Router

AGENTS = [
    {"uid": "c1", "peer": {"auth": {"uid": "a1", "name": "up"}}, "version": "0.0.1", "up": True},
    {"uid": "c2", "peer": {"auth": {"uid": "a2", "name": "lost"}}, "up": False},
]
ANSWERS = {
    "/readyz": {},
    "/whoami": {"name": None, "role": "admin", "via": "open"},
    "/openapi.json": {"info": {"version": "9.9"}},
    "/connections": {"connections": AGENTS},
}


class _Buffering(BaseHTTPRequestHandler):
    over = threading.Event()

    def date_time_string(self, timestamp: float | None = None) -> str:
        return "Sat, 01 Jan 2000 00:00:00 GMT"

    def do_GET(self) -> None:
        self.send_response(200)
        body = json.dumps(ANSWERS.get(self.path, {})).encode()
        if self.path != "/events":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path == "/events":
            self.over.wait(30)
        else:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(router_checks, "_SOON", 0.3)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Buffering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    _Buffering.over.set()
    server.shutdown()
    server.server_close()


def test_each_thing_that_is_wrong_is_found_with_what_to_do(url: str) -> None:
    with Router(url, "", retry_for=0.0) as router:
        checks = router_checks.router_checks(router, Chosen(url, None, None, "--url"))
    found = [(check.name, check.level) for check in checks]
    assert found == [
        ("port", "ok"),
        ("router", "ok"),
        ("clock", "error"),
        ("access", "ok"),
        ("versions", "warning"),
        ("streams", "error"),
        ("agents", "warning"),
        ("agents", "error"),
    ]
    assert all(check.todo for check in checks if check.level != "ok")


def test_files_that_others_can_read_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    token = tmp_path / "token"
    token.write_text("prt_x")
    token.chmod(0o644)
    keys = tmp_path / "prouter" / "router-8888" / "keys"
    keys.mkdir(parents=True)
    (keys.parent).chmod(0o700)
    (keys / "router.key_secret").write_text("x")
    (keys / "router.key_secret").chmod(0o640)
    wrong = [check for check in machine.machine_checks(str(token)) if check.name == "permissions"]
    assert [check.level for check in wrong] == ["error", "error"]
    assert [
        str(path) in check.text for path, check in zip((token, keys / "router.key_secret"), wrong, strict=True)
    ] == [
        True,
        True,
    ]
