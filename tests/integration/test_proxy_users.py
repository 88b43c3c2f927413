"""Users whom a trusted proxy names: who is believed, what their groups may do, what jobs are told; nginx's login."""

from __future__ import annotations

import http.server
import json
import re
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import requests
from websockets.sync.client import connect

from prouter.access.assertion_keys import ASSERTION_KEYS
from tests.bench.nginx import DEPLOY, Nginx
from tests.integration.test_access import ECHO, WEBSOCKETS
from tests.support.access import new_token
from tests.support.browser_fields import FETCH, NAVIGATION, proof_in
from tests.support.ports import free_port
from tests.support.processes import Agent, Router, start_agent, start_router, wait_until
from tests.support.programs import needed

PAGE = Path(__file__).parents[2] / "docs" / "access.md"
TRUSTED, OTHER = "127.0.0.2", "127.0.0.3"
USER, GROUPS = "X-Forwarded-User", "X-Forwarded-Groups"


class Place:
    """A router that believes a proxy, with an agent.

    Attributes:
        token: of bob, an operator.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "router"
        self.directory.mkdir(parents=True)
        self.token = new_token(self.directory, "bob", "operator")["token"]
        self.unix = directory / "control.sock"
        sets: dict[str, Any] = {
            "control.unix": str(self.unix),
            "control.trusted_proxies": (f"{TRUSTED}/32", "unix"),
            "control.user_header": USER,
            "control.group_header": GROUPS,
            "control.group_roles": {"admins": "admin", "ops": "operator", "guests": "viewer"},
            "control.job_domain": "jobs.localhost",
            "control.drop_cookies": ["_oauth2_proxy*"],
        }
        self.router: Router = start_router(self.directory, **sets)
        self.agent: Agent = start_agent(directory / "agent", self.router)
        self.url = self.router.url
        self.port = int(self.url.rpartition(":")[2])

    def ask(self, source: str, *fields: tuple[str, str], path: str = "/whoami", host: str = "localhost") -> Any:
        """Status and JSON of a GET with exactly these fields, from an address, or over the unix socket (``unix``)."""
        if source == "unix":
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(self.unix))
        else:
            sock = socket.create_connection(("127.0.0.1", self.port), source_address=(source, 0))
        with sock:
            sock.settimeout(30)
            lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{lines}\r\n".encode())
            head, _, body = b"".join(iter(lambda: sock.recv(65536), b"")).partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)

    def whom(self, *fields: tuple[str, str], source: str = TRUSTED) -> tuple[str, str, str] | int:
        """Name, role and via, or the status of the error."""
        status, body = self.ask(source, *fields)
        return (body["name"], body["role"], body["via"]) if status == 200 else status

    def job(self, *args: str, env: dict[str, str] | None = None) -> str:
        """A new job of alice, a user of the proxy's; its path."""
        with session(TRUSTED) as alice:
            alice.headers[USER] = "alice"
            body = {"name": "j", "agent": {"type": "uid", "uid": self.agent.uid}}
            made = alice.post(f"{self.url}/jobs/create", json=body, timeout=30).json()
            assert made["owner"] == "alice"
            start = {"args": [sys.executable, *args], "env": env or {}, "expose": {"port": "assign"}}
            started = alice.post(f"{self.url}{made['path']}/start", json=start, timeout=60)
            assert started.status_code == 200, started.text
        path: str = made["path"]
        return path


def session(source: str) -> requests.Session:
    """A client with this address."""
    made = requests.Session()
    made.get_adapter("http://").init_poolmanager(1, 1, source_address=(source, 0))  # type: ignore[attr-defined]
    return made


@pytest.fixture(scope="module")
def it(short_dir: Path) -> Iterator[Place]:
    place = Place(short_dir / "proxied")
    yield place
    place.agent.stop()
    place.router.stop()


@pytest.fixture(scope="module")
def echo(it: Place) -> str:
    """A job that answers with the fields of the request."""
    return it.job("-c", ECHO)


@pytest.mark.parametrize("source", [TRUSTED, "unix"])
def test_a_trusted_proxy_names_users(it: Place, source: str) -> None:
    assert it.whom((USER, "alice"), source=source) == ("alice", "user", "proxy")
    assert it.whom((USER.lower(), " alice "), source=source) == ("alice", "user", "proxy")
    assert it.whom(source=source) == 401


def test_the_log_warns_of_a_proxy_from_whose_address_others_can_connect(it: Place) -> None:
    assert "event=users_not_protected" in (it.directory / "router.log").read_text()


@pytest.mark.parametrize("source", ["127.0.0.1", OTHER])
def test_nobody_else_does(it: Place, source: str) -> None:
    assert it.whom((USER, "alice"), source=source) == 401
    assert it.whom((USER, "alice"), ("X-Forwarded-For", TRUSTED), source=source) == 401
    token = ("Authorization", f"Bearer {it.token}")
    assert it.whom((USER, "alice"), (GROUPS, "admins"), token, source=source) == ("bob", "operator", "token")


def test_a_token_counts_before_the_users_name(it: Place) -> None:
    assert it.whom((USER, "alice"), ("Authorization", f"Bearer {it.token}")) == ("bob", "operator", "token")
    assert it.whom((USER, "alice"), ("Authorization", "Bearer prt_wrong")) == ("alice", "user", "proxy")


def test_a_name_that_is_there_twice_or_not_at_all_counts_for_nothing(it: Place) -> None:
    for fields in (
        [(USER, "alice"), (USER, "root")],
        [(USER, "alice"), (USER.upper(), "alice")],
        [(USER, "")],
        [(USER, "  ")],
        [("X_Forwarded_User", "alice")],
        [("X-Forwarded_User", "alice")],
        [(USER, "alice"), (GROUPS, "guests"), (GROUPS, "admins")],
        [(GROUPS, "admins")],
    ):
        assert it.whom(*fields) == 401, fields
    # What servers would take for the same field is not believed beside the right one either.
    assert it.whom((USER, "alice"), ("X_Forwarded_Groups", "admins"), ("X_Forwarded_User", "root"))[1] == "user"  # type: ignore[index]


@pytest.mark.parametrize("name", ["a b", "alice,root", "alice/root", "share:1", "é", "a" * 65, "-a", '"alice"', "a\tb"])
def test_a_name_that_no_owner_can_have_is_refused(it: Place, name: str) -> None:
    status, body = it.ask(TRUSTED, (USER, name))
    assert (status, body["code"]) == (403, "unusable_user")
    assert "the proxy in front names the user" in body["detail"]
    assert it.ask(TRUSTED, (USER, name), path="/jobs/c/j/http/")[0] == 403
    assert it.ask(TRUSTED, (USER, name), path="/healthz")[0] == 200


@pytest.mark.parametrize(
    ("groups", "role"),
    [
        ("", "user"),
        ("staff", "user"),
        ("guests", "viewer"),
        ("ops", "operator"),
        (" staff , ops ,guests", "operator"),
        ("guests,admins,ops", "admin"),
        ("Admins", "user"),
        ("admins ops", "user"),
        (",,", "user"),
    ],
)
def test_the_highest_role_of_a_users_groups_counts(it: Place, groups: str, role: str) -> None:
    assert it.whom((USER, "carol"), (GROUPS, groups)) == ("carol", role, "proxy")


def test_users_own_their_jobs(it: Place, echo: str) -> None:
    assert it.ask(TRUSTED, (USER, "alice"), path=f"{echo}/http/")[0] == 200
    assert it.ask(TRUSTED, (USER, "mallory"), path=f"{echo}/http/")[0] == 403
    assert it.ask(TRUSTED, (USER, "mallory"), (GROUPS, "ops"), path=f"{echo}/http/")[0] == 200
    assert it.ask(TRUSTED, path=f"{echo}/http/")[0] == 401
    host = f"{echo.rpartition('/')[2]}.jobs.localhost"
    assert it.ask(TRUSTED, (USER, "alice"), path="/", host=host)[0] == 200


def test_a_browsers_requests_need_the_proof_that_its_dashboard_holds(it: Place) -> None:
    with session(TRUSTED) as browser:
        browser.headers[USER] = "alice"
        page = browser.get(f"{it.url}/", headers=NAVIGATION, timeout=30)
        assert page.status_code == 200
        proof = {"X-PRouter-Proof": proof_in(page.text)}
        assert browser.get(f"{it.url}/whoami", headers={**FETCH, **proof}, timeout=30).json()["via"] == "proxy"
        assert browser.get(f"{it.url}/whoami", headers=FETCH, timeout=30).status_code == 401
        browser.headers[USER] = "mallory"
        assert browser.get(f"{it.url}/whoami", headers={**FETCH, **proof}, timeout=30).status_code == 401
        gone = browser.get(f"{it.url}/sign-in", headers=NAVIGATION, timeout=30, allow_redirects=False)
        assert (gone.status_code, gone.headers["Location"]) == (303, "/")


# -- what a job is told -----------------------------------------------------------------------------------------


def verified(it: Place, text: str, job: str) -> dict[str, Any]:
    """What a job's server reads, which knows the router's address and its own uid."""
    client = jwt.PyJWKClient(f"{it.url}/.well-known/jwks.json", cache_keys=False, cache_jwk_set=False)
    key = client.get_signing_key_from_jwt(text)
    claims: dict[str, Any] = jwt.decode(text, key, algorithms=["ES256"], audience=job)
    return claims


FORGED = [
    ("X-PRouter-User", "root"),
    ("X_PRouter_User", "root"),
    ("X-PRouter-Assertion", "forged"),
    ("x-prouter_assertion", "forged"),
]


def test_a_job_is_told_who_asks(it: Place, echo: str) -> None:
    uid = echo.rpartition("/")[2]
    for source, fields, name, role, via in (
        (TRUSTED, [(USER, "alice")], "alice", "user", "proxy"),
        ("127.0.0.1", [("Authorization", f"Bearer {it.token}"), (USER, "root")], "bob", "operator", "token"),
    ):
        status, seen = it.ask(source, *fields, *FORGED, path=f"{echo}/http/")
        assert status == 200
        told = {key.lower().replace("_", "-"): value for key, value in seen.items()}
        assert told["x-prouter-user"] == name
        claims = verified(it, told["x-prouter-assertion"], uid)
        assert (claims["sub"], claims["role"], claims["via"]) == (name, role, via)
        assert claims["job"] == echo
        assert (
            claims["iss"]
            == it.router.get("/info", headers={"Authorization": f"Bearer {it.token}"}).json()["auth"]["uid"]
        )
        assert claims["exp"] - claims["iat"] == 300
        assert "root" not in json.dumps(told) or source == TRUSTED
        with pytest.raises(jwt.InvalidAudienceError):
            verified(it, told["x-prouter-assertion"], "another job")
    keys = requests.get(f"{it.url}/.well-known/jwks.json", timeout=30)
    assert keys.headers["Cache-Control"] == "public, max-age=300"


def test_websockets_tell_it_too(it: Place) -> None:
    path = it.job(WEBSOCKETS)
    url = f"ws://127.0.0.1:{it.port}{path}/http/headers"
    token = {"Authorization": f"Bearer {it.token}", "X-PRouter-User": "root"}
    with connect(url, additional_headers=token) as websocket:
        told = [(name.lower(), value) for name, value in json.loads(websocket.recv(timeout=10))]
    assert [value for name, value in told if name == "x-prouter-user"] == ["bob"]
    (assertion,) = [value for name, value in told if name == "x-prouter-assertion"]
    assert verified(it, assertion, path.rpartition("/")[2])["sub"] == "bob"


def test_what_was_signed_before_a_rotation_is_verified_after_it(it: Place, echo: str) -> None:
    uid = echo.rpartition("/")[2]

    def assertion(name: str) -> str:
        return str(it.ask(TRUSTED, (USER, name), (GROUPS, "ops"), path=f"{echo}/http/")[1]["X-PRouter-Assertion"])

    old = assertion("dan")
    file = it.directory / "state" / ASSERTION_KEYS
    document = json.loads(file.read_text())
    assert file.stat().st_mode & 0o777 == 0o600
    for key in document["keys"]:
        key["created"] -= 86400 + 901  # a day has passed
    file.write_text(json.dumps(document))
    new = assertion("erin")
    wait_until(lambda: len(json.loads(file.read_text())["keys"]) == 2, what="a new key")
    assert verified(it, old, uid)["sub"] == "dan"
    assert verified(it, new, uid)["sub"] == "erin"
    document = json.loads(file.read_text())
    document["keys"][-1]["created"] -= 901  # it was published for long enough
    file.write_text(json.dumps(document))
    latest = assertion("frank")
    assert verified(it, latest, uid)["sub"] == "frank"
    assert jwt.get_unverified_header(latest)["kid"] == document["keys"][-1]["id"]
    assert verified(it, old, uid)["sub"] == "dan"


SERVER = """
import http.server, json
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            answer = visitor(self.headers)
        except (jwt.PyJWTError, KeyError) as error:
            answer = {"refused": type(error).__name__}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


def test_the_example_of_the_page_verifies_its_visitors(it: Place) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    path = it.job("-c", example + SERVER, env={"ROUTER": it.url})
    status, seen = it.ask(TRUSTED, (USER, "alice"), *FORGED, path=f"{path}/http/")
    assert (status, seen["sub"], seen["role"]) == (200, "alice", "user")


def test_an_open_router_tells_nothing(router: Router, agent: Agent, tmp_path: Path) -> None:
    script = tmp_path / "echo.py"
    script.write_text(ECHO)
    path = router.serve(agent.uid, script)
    seen = router.get(f"{path}/http/", headers=dict(FORGED)).json()
    assert not [name for name in seen if name.lower().replace("_", "-") in ("x-prouter-user", "x-prouter-assertion")]
    router.post(f"{path}/remove")


# -- nginx ------------------------------------------------------------------------------------------------------


class Login(http.server.BaseHTTPRequestHandler):
    """Stands for oauth2-proxy: a cookie holds email and groups."""

    def do_GET(self) -> None:
        if self.path.startswith("/oauth2/sign_in"):
            self.answer(200)
            return
        cookie = self.headers.get("Cookie", "").partition(";")[0]
        if not cookie.startswith("_oauth2_proxy="):
            self.answer(401)
            return
        email, _, groups = cookie.partition("=")[2].partition("|")
        self.answer(
            202, {"X-Auth-Request-User": "some-id", "X-Auth-Request-Email": email, "X-Auth-Request-Groups": groups}
        )

    def answer(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_args: Any) -> None:
        pass


def with_login(main: Path, login: int) -> None:
    """What docs/access.md tells to change."""
    site = main.parent / "conf.d" / "prouter.conf"
    text = site.read_text()
    lines: list[str] = []
    for line in text.splitlines():
        if line.strip().startswith(("auth_basic off;    ", "auth_basic_user_file")):
            continue
        if line == "    auth_basic off;":
            line = "    include snippets/prouter-login.conf;"
        lines.append(line.replace("auth_basic off", "auth_request off"))
        if line.strip() == "include snippets/prouter-proxy.conf;" and "location / {" in lines[-2]:
            lines.append("        include snippets/prouter-user.conf;")
    site.write_text("\n".join(lines) + "\n")
    assert text.count("location / {") == site.read_text().count("prouter-user.conf")
    snippet = main.parent / "snippets" / "prouter-login.conf"
    assert snippet.read_text() == (DEPLOY / "snippets" / "prouter-login.conf").read_text()
    assert '"127.0.0.1:4180"' in (DEPLOY.parent / "oauth2-proxy" / "oauth2-proxy.cfg").read_text()
    snippet.write_text(snippet.read_text().replace("127.0.0.1:4180", f"127.0.0.1:{login}"))


@needed("nginx")
def test_people_sign_in_through_nginx(it: Place, echo: str, tmp_path: Path) -> None:
    login = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Login)
    threading.Thread(target=login.serve_forever, daemon=True).start()
    port = free_port()
    nginx = Nginx(
        tmp_path / "nginx", f"unix:{it.unix}", port, adapt=lambda main: with_login(main, login.server_address[1])
    )
    url = f"http://127.0.0.1:{port}"

    def who(cookie: str = "", **headers: str) -> tuple[int, Any]:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = requests.get(f"{url}/whoami", headers={**fields, "Cookie": cookie}, timeout=30, allow_redirects=False)
        return answer.status_code, answer.json() if answer.status_code == 200 else answer.headers.get("Location")

    alice = "_oauth2_proxy=alice@example.org|staff,ops"
    forged = {USER: "root", GROUPS: "admins"}
    try:
        assert who() == (302, f"{url}/oauth2/sign_in?rd={url}/whoami")
        assert who(**forged)[0] == 302
        assert requests.get(f"{url}/oauth2/sign_in", timeout=30).status_code == 200
        assert requests.get(f"{url}/oauth2/auth", timeout=30).status_code == 404, "internal"
        for fields in ({}, forged, {"X_Forwarded_User": "root"}):
            assert who(alice, **fields) == (200, {"name": "alice@example.org", "role": "operator", "via": "proxy"})
        assert who("_oauth2_proxy=|admins", **forged)[0] == 401, "a login without a name"
        bearer = {"Authorization": f"Bearer {it.token}"}
        assert who(**bearer, **forged) == (200, {"name": "bob", "role": "operator", "via": "token"})
        assert who(Authorization="Bearer prt_wrong", **forged)[0] == 401
        assert who(alice, **bearer)[1]["name"] == "bob"
        seen = requests.get(f"{url}{echo}/http/", headers={"Cookie": f"{alice}; mine=1", **forged}, timeout=30).json()
        assert seen["X-PRouter-User"] == "alice@example.org"
        assert seen["Cookie"] == "mine=1"
        assert verified(it, seen["X-PRouter-Assertion"], echo.rpartition("/")[2])["sub"] == "alice@example.org"
        assert requests.get(f"{url}/.well-known/jwks.json", timeout=30).json()["keys"]
    finally:
        nginx.close()
        login.shutdown()
