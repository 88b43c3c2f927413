"""Changes to a head on its way, and everything that stays."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.web.proxy.addresses.forwarded import Forwarded, Origin, Public
from prouter.web.proxy.addresses.hops import came_through, pseudonym
from prouter.web.proxy.addresses.mapping import Site, local_host
from prouter.web.proxy.addresses.rewrite import request_to_job, response_to_client
from prouter.web.proxy.messages.heads import parse_request, parse_response

PREFIX = b"/jobs/c/j/http"
DIRECT = Origin("203.0.113.9", 8080, trusted=False)
NGINX = Origin("127.0.0.1", 8080, trusted=True)


def nowhere() -> Site:
    raise AssertionError("no address in this head")


def to_job(lines: bytes, origin: Origin = DIRECT, prefix: bytes = PREFIX, **site: Any) -> list[bytes]:
    head = parse_request(b"GET /x HTTP/1.1\r\nHost: h:1\r\n" + lines + b"\r\n")
    place = Site(**{"prefix": prefix, "public": Public(b"http", b"h:1"), "hidden": prefix, **site})
    return request_to_job(Forwarded(head, origin), b"/x", prefix, site=lambda: place, local=bool(place.local)).split(
        b"\r\n"
    )


def to_client(lines: bytes, status: bytes = b"200 OK", **changes: Any) -> list[bytes]:
    framing = {"chunked": False, "keep_alive": True, "client_version": "1.1", "own_host": False}
    framing.update((name, changes.pop(name)) for name in framing.keys() & changes.keys())
    site = Site(
        **{
            "prefix": PREFIX,
            "public": Public(b"http", b"h:1"),
            "names": (b"127.0.0.1:5000",),
            "own_host": bool(framing["own_host"]),
            **changes,
        }
    )
    head = parse_response(b"HTTP/1.1 " + status + b"\r\n" + lines + b"\r\n")
    return response_to_client(head, lambda: site, **framing).split(b"\r\n")  # type: ignore[arg-type]


def test_hop_by_hop_fields_and_those_named_in_connection_are_dropped() -> None:
    lines = to_job(
        b"Connection: keep-alive, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\nProxy-Authorization: s\r\n"
        b"Authorization: Bearer job\r\nUpgrade: h2c\r\nKept_: 1\r\n"
    )
    assert b"Authorization: Bearer job" in lines
    assert b"Kept_: 1" in lines
    text = b"\r\n".join(lines).lower()
    for gone in (b"\r\nx-mine", b"keep-alive", b"\r\nte:", b"proxy-authorization", b"upgrade"):
        assert gone not in text


def test_no_connection_option_takes_host_or_framing_away() -> None:
    request = parse_request(
        b"POST / HTTP/1.1\r\nHost: h\r\nConnection: Content-Length, host\r\nContent-Length: 5\r\n\r\n"
    )
    lines = request_to_job(Forwarded(request, DIRECT), b"/", PREFIX, site=nowhere).split(b"\r\n")
    assert b"Host: h" in lines
    assert b"Content-Length: 5" in lines
    assert b"Content-Length: 5" in to_client(b"Connection: content-length\r\nContent-Length: 5\r\n")


def test_a_job_cannot_pass_its_answers_off_as_our_errors() -> None:
    assert not [line for line in to_client(b"x-prouter-ERROR: job_ended\r\n") if b"rror" in line]


def test_an_old_client_does_not_wait_for_100_continue() -> None:
    old = parse_request(b"POST / HTTP/1.0\r\nexpect: 100-Continue\r\nContent-Length: 1\r\n\r\n")
    assert b"expect" not in request_to_job(Forwarded(old, DIRECT), b"/", PREFIX, site=nowhere).lower()


def test_an_upgrade_passes_with_its_protocol() -> None:
    lines = to_job(b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: a, b\r\n")
    assert b"Connection: Upgrade" in lines
    assert b"Upgrade: websocket" in lines
    assert b"Sec-WebSocket-Protocol: a, b" in lines


def test_forwarded_headers_of_strangers_are_replaced() -> None:
    lines = to_job(
        b"X-Forwarded-For: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\nX-Forwarded-Proto: https\r\nX-Real-IP: 9\r\n"
        b"X_Forwarded_For: 1.2.3.4\r\nX-Forwarded_Proto: https\r\n"
    )
    assert b"X-Forwarded-For: 203.0.113.9" in lines
    assert b"X-Forwarded-Proto: http" in lines
    assert b"X-Forwarded-Host: h:1" in lines
    assert b"X-Forwarded-Port: 8080" in lines
    assert b"X-Forwarded-Prefix: " + PREFIX in lines
    assert b"Forwarded: for=203.0.113.9;proto=http" in lines
    assert not any(line.startswith(b"X-Real-IP") or b"1.2.3.4" in line or b"https" in line for line in lines)


def test_forwarded_headers_of_trusted_proxies_are_extended() -> None:
    lines = to_job(
        b"X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: pub\r\nX-Forwarded-Prefix: /p/\r\n",
        origin=NGINX,
    )
    assert b"X-Forwarded-For: 1.2.3.4, 127.0.0.1" in lines
    assert b"X-Forwarded-Proto: https" in lines
    assert b"X-Forwarded-Host: pub" in lines
    assert b"X-Forwarded-Port: 443" in lines
    assert b"X-Forwarded-Prefix: /p" + PREFIX in lines
    assert b"Forwarded: for=1.2.3.4;host=pub;proto=https, for=127.0.0.1;proto=http" in lines


def test_a_trusted_proxy_may_say_it_the_standard_way() -> None:
    told = b'for="[2001:db8::1]:4711";host="a\\"b,c";proto=HTTPS;by=x, for=10.0.0.2'
    lines = to_job(b"Forwarded: " + told + b"\r\n", origin=NGINX)
    assert b"X-Forwarded-For: 2001:db8::1, 10.0.0.2, 127.0.0.1" in lines
    assert b"X-Forwarded-Proto: https" in lines
    assert b'X-Forwarded-Host: a"b,c' in lines
    assert b"X-Forwarded-Port: 443" in lines
    told = b'for="[2001:db8::1]:4711";proto=HTTPS;by=x, for=10.0.0.2'
    assert b"Forwarded: " + told + b", for=127.0.0.1;proto=http" in lines


def test_addresses_are_written_as_each_field_has_them() -> None:
    lines = to_job(b'Forwarded: for="[2001:db8::1]:4711", for="192.0.2.1:80"\r\n', origin=NGINX)
    assert b"X-Forwarded-For: 2001:db8::1, 192.0.2.1, 127.0.0.1" in lines
    lines = to_job(b"X-Forwarded-For: [2001:db8::1]:4711, 192.0.2.1:80, nonsense\r\n", origin=NGINX)
    told = next(line for line in lines if line.startswith(b"Forwarded: "))
    assert [part.partition(b";")[0] for part in told[11:].split(b", ")] == [
        b'for="[2001:db8::1]"',
        b"for=192.0.2.1",
        b"for=unknown",
        b"for=127.0.0.1",
    ]


def test_of_several_proxies_the_first_one_saw_the_client() -> None:
    head = parse_request(
        b"GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-Proto: https, http\r\nX-Forwarded-Host: pub:99, in\r\n\r\n"
    )
    assert Forwarded(head, NGINX).public == (b"https", b"pub:99", b"")


@pytest.mark.parametrize("prefix", [b"evil", b"/a b", b"//host", b"/a\xff", b"/a?b"])
def test_a_prefix_that_is_no_path_is_ignored(prefix: bytes) -> None:
    head = parse_request(b"GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-Prefix: " + prefix + b"\r\n\r\n")
    assert Forwarded(head, NGINX).public.prefix == b""


def test_a_proxy_on_a_unix_socket_adds_no_address() -> None:
    socket = Origin("unix", 0, trusted=True)
    assert b"X-Forwarded-For: 1.2.3.4" in to_job(b"X-Forwarded-For: 1.2.3.4\r\n", origin=socket)
    assert b"X-Forwarded-For: unknown" in to_job(b"", origin=socket)
    assert b"X-Forwarded-For: unknown" in to_job(b"X-Forwarded-For: 1.2.3.4\r\n", origin=socket._replace(trusted=False))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"/login", PREFIX + b"/login"),
        (b"/", PREFIX + b"/"),
        (b"login?next=/", b"login?next=/"),
        (b"../up", b"../up"),
        (b"?page=2", b"?page=2"),
        (PREFIX + b"/there", PREFIX + b"/there"),
        (PREFIX, PREFIX),
        (PREFIX + b"x", PREFIX + PREFIX + b"x"),
        (b"//other/x", b"//other/x"),
        (b"//h:1/x", b"//h:1" + PREFIX + b"/x"),
        (b"//127.0.0.1:5000/x", PREFIX + b"/x"),
        (b"https://elsewhere.example/x", b"https://elsewhere.example/x"),
        (b"http://h:1/x", b"http://h:1" + PREFIX + b"/x"),
        (b"http://h:1", b"http://h:1" + PREFIX + b"/"),
        (b"http://h:1" + PREFIX + b"/x", b"http://h:1" + PREFIX + b"/x"),
        (b"http://h:11/x", b"http://h:11/x"),
        (b"HTTP://H:1?q", b"http://H:1" + PREFIX + b"/?q"),
        (b"https://h:1/x", b"https://h:1" + PREFIX + b"/x"),
        (b"https://127.0.0.1:5000/x", b"https://127.0.0.1:5000/x"),
        (b"mailto:a@b", b"mailto:a@b"),
        (b"http://127.0.0.1:5000/x?y", PREFIX + b"/x?y"),
    ],
)
def test_location_goes_under_the_prefix_only_where_it_is_ours(value: bytes, expected: bytes) -> None:
    assert b"Location: " + expected in to_client(b"Location: " + value + b"\r\n")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"a=1", b"a=1"),
        (b"a=1; Path=/", b"a=1; Path=" + PREFIX + b"/"),
        (b"a=1; path=/x; HttpOnly", b"a=1; path=" + PREFIX + b"/x; HttpOnly"),
        (b"a=1; Path=" + PREFIX + b"/x", b"a=1; Path=" + PREFIX + b"/x"),
        (b"a=1; Domain=localhost; Secure", b"a=1; Secure"),
        (b"a=/; Path", b"a=/; Path"),
    ],
)
def test_cookies_go_under_the_prefix(value: bytes, expected: bytes) -> None:
    assert b"Set-Cookie: " + expected in to_client(b"Set-Cookie: " + value + b"\r\n")


@pytest.mark.parametrize("known", [b"", PREFIX, b"/outer" + PREFIX])
def test_a_job_need_not_know_of_the_prefix_that_another_proxy_adds(known: bytes) -> None:
    public = Public(b"http", b"h:1", b"/outer")
    lines = to_client(
        b"Location: %s/x\r\nSet-Cookie: a=1; Path=%s/x\r\n" % (known, known), prefix=b"/outer" + PREFIX, public=public
    )
    assert b"Location: /outer" + PREFIX + b"/x" in lines
    assert b"Set-Cookie: a=1; Path=/outer" + PREFIX + b"/x" in lines


def test_a_job_that_does_not_know_of_tls_is_helped() -> None:
    lines = to_client(b"Location: http://h:1/x\r\n", public=Public(b"https", b"h:1"))
    assert b"Location: https://h:1" + PREFIX + b"/x" in lines


@pytest.mark.parametrize(
    ("value", "public", "expected"),
    [
        (b"http://h/x", Public(b"http", b"h:80"), b"http://h:80"),
        (b"http://h:80/x", Public(b"http", b"h"), b"http://h"),
        (b"https://h:443/x", Public(b"https", b"h"), b"https://h"),
        (b"http://h:80/x", Public(b"https", b"h"), b"https://h"),
        (b"//h:443/x", Public(b"https", b"h"), b"//h"),
    ],
)
def test_a_port_that_the_scheme_implies_may_be_left_out(value: bytes, public: Public, expected: bytes) -> None:
    assert b"Location: " + expected + PREFIX + b"/x" in to_client(b"Location: " + value + b"\r\n", public=public)


def test_another_port_is_another_server() -> None:
    assert b"Location: http://h:443/x" in to_client(b"Location: http://h:443/x\r\n", public=Public(b"http", b"h"))


@pytest.mark.parametrize(
    ("changes", "connection"),
    [
        ({}, b"Connection: Upgrade"),
        ({"keep_alive": False}, b"Connection: Upgrade, close"),
        ({"client_version": "1.0"}, b"Connection: Upgrade, keep-alive"),
    ],
)
def test_a_demand_to_upgrade_says_to_what(changes: dict[str, object], connection: bytes) -> None:
    lines = to_client(b"Upgrade: websocket\r\nConnection: Upgrade\r\n", b"426 Upgrade Required", **changes)
    assert b"Upgrade: websocket" in lines
    assert [line for line in lines if line.startswith(b"Connection")] == [connection]


def test_with_a_host_of_its_own_a_job_keeps_its_paths_but_no_wider_cookies() -> None:
    lines = to_client(
        b"Location: http://127.0.0.1:5000/x\r\nSet-Cookie: a=1; Path=/; Domain=jobs.example.org\r\n",
        prefix=b"",
        own_host=True,
    )
    assert b"Location: /x" in lines
    assert b"Set-Cookie: a=1; Path=/" in lines


def test_without_a_prefix_nothing_is_rewritten() -> None:
    lines = to_client(b"Location: /x\r\nSet-Cookie: a=1; Path=/; Domain=d\r\n", prefix=b"")
    assert b"Location: /x" in lines
    assert b"Set-Cookie: a=1; Path=/; Domain=d" in lines


def test_an_answer_has_exactly_one_framing_header() -> None:
    assert to_client(b"Content-Length: 5\r\n").count(b"Content-Length: 5") == 1
    chunked = to_client(b"Transfer-Encoding: chunked\r\nTrailer: X\r\n", chunked=True)
    assert chunked.count(b"Transfer-Encoding: chunked") == 1
    assert not any(line.startswith((b"Trailer", b"Content-Length")) for line in chunked)


def test_caching_and_encoding_fields_and_repetitions_pass_untouched() -> None:
    lines = b'ETag: "x"\r\nCache-Control: no-cache\r\nContent-Encoding: br\r\nVary: a\r\nVary: b\r\nAge: 1\r\n'
    assert to_client(lines)[1:7] == lines.split(b"\r\n")[:6]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (b"Content-Location", b"/a", PREFIX + b"/a"),
        (b"Content-Location", b"a", b"a"),
        (b"SourceMap", b"/a.map", PREFIX + b"/a.map"),
        (b"Refresh", b"5", b"5"),
        (b"Refresh", b"5; url=/a?b=c;d", b"5; url=" + PREFIX + b"/a?b=c;d"),
        (b"Refresh", b"0;URL = '/a'; x", b"0;URL = '" + PREFIX + b"/a'; x"),
        (b"Refresh", b'0.5, url="http://h:1/a"', b'0.5, url="http://h:1' + PREFIX + b'/a"'),
        (b"Refresh", b"3 /a", b"3 " + PREFIX + b"/a"),
        (b"Refresh", b"3; url=a", b"3; url=a"),
        (b"Refresh", b"3; url=https://other/a", b"3; url=https://other/a"),
        (b"Refresh", b"3; url=" + PREFIX + b"/a", b"3; url=" + PREFIX + b"/a"),
        (b"Link", b"</a>; rel=next", b"<" + PREFIX + b"/a>; rel=next"),
        (b"Link", b"</a>;rel=x,</b>,<c>", b"<" + PREFIX + b"/a>;rel=x,<" + PREFIX + b"/b>,<c>"),
        (b"Link", b'<//o/a>; title="</b>, \\"</c>"; as=x', b'<//o/a>; title="</b>, \\"</c>"; as=x'),
        (b"Link", b'<a,b>; ANCHOR="/c"; x', b'<a,b>; ANCHOR="' + PREFIX + b'/c"; x'),
        (b"Link", b'<a>; title="; anchor="; x="</b>"', b'<a>; title="; anchor="; x="</b>"'),
        (b"Link", b"<http://127.0.0.1:5000/a>; rel=x", b"<" + PREFIX + b"/a>; rel=x"),
        (b"Link", b"<" + PREFIX + b"/a>", b"<" + PREFIX + b"/a>"),
        (b"Link", b'</a>; title="open', b"<" + PREFIX + b'/a>; title="open'),
        (b"Link", b"</a", b"<" + PREFIX + b"/a"),
    ],
)
def test_every_field_with_addresses_goes_under_the_prefix(name: bytes, value: bytes, expected: bytes) -> None:
    assert name + b": " + expected in to_client(name + b": " + value + b"\r\n")
    assert name + b": " + value in to_client(name + b": " + value + b"\r\n", prefix=b"")


@pytest.mark.parametrize(
    "value",
    [b'"' + b'\\"' * 100_000, b"<" * 200_000, b';anchor="' * 20_000, b"<a" + b" " * 200_000, b"0" + b" " * 200_000],
)
@pytest.mark.parametrize("name", [b"Link", b"Refresh"])
def test_long_values_take_no_long_time(name: bytes, value: bytes) -> None:
    site = Site(PREFIX, Public(b"http", b"h:1"))
    before = time.process_time()
    site.to_client(name, value)
    assert time.process_time() - before < 2, "more than linear"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"http://h:1" + PREFIX + b"/a%20b?c", b"http://h:1/a%20b?c"),
        (b"HTTPS://H:1" + PREFIX, b"HTTPS://H:1/"),
        (PREFIX + b"/a", b"/a"),
        (PREFIX + b"x/a", PREFIX + b"x/a"),
        (b"/a", b"/a"),
        (b"http://h:1/jobs/c/other/http/a", b"http://h:1/jobs/c/other/http/a"),
        (b"http://elsewhere" + PREFIX + b"/a", b"http://elsewhere" + PREFIX + b"/a"),
        (b"a", b"a"),
    ],
)
def test_a_destination_loses_the_prefix_as_the_target_does(value: bytes, expected: bytes) -> None:
    assert b"Destination: " + expected in to_job(b"Destination: " + value + b"\r\n")
    assert b"Destination: " + value in to_job(b"Destination: " + value + b"\r\n", hidden=b"")
    condition = b'If: <%s> (<urn:uuid:1> ["e"]) (Not <DAV:no-lock>)'
    assert condition % expected in to_job(condition % value + b"\r\n")


def test_a_destination_behind_another_proxy_loses_its_prefix_too() -> None:
    public = Public(b"https", b"pub", b"/outer")
    for value in (b"https://pub/outer" + PREFIX + b"/a", b"https://pub" + PREFIX + b"/a"):
        lines = to_job(b"Destination: " + value + b"\r\n", prefix=b"/outer" + PREFIX, hidden=PREFIX, public=public)
        assert b"Destination: https://pub/a" in lines


LOCAL = b"127.0.0.1:5000"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"Origin: http://h:1", b"Origin: http://127.0.0.1:5000"),
        (b"Origin: https://H:1", b"Origin: http://127.0.0.1:5000"),
        (b"Origin: http://evil", b"Origin: http://evil"),
        (b"Origin: null", b"Origin: null"),
        (b"Origin: http://h:11", b"Origin: http://h:11"),
        (b"Referer: http://h:1" + PREFIX + b"/a?b", b"Referer: http://127.0.0.1:5000/a?b"),
        (b"Referer: http://h:1/", b"Referer: http://127.0.0.1:5000/"),
        (b"Referer: http://evil/a", b"Referer: http://evil/a"),
        (b"Destination: http://h:1" + PREFIX + b"/a", b"Destination: http://127.0.0.1:5000/a"),
    ],
)
def test_a_job_may_be_spoken_to_under_its_local_address(line: bytes, expected: bytes) -> None:
    lines = to_job(line + b"\r\n", local=LOCAL)
    assert expected in lines
    assert b"Host: 127.0.0.1:5000" in lines
    assert b"X-Forwarded-Host: h:1" in lines
    if not line.startswith(b"Destination"):
        assert {line, b"Host: h:1"} <= set(to_job(line + b"\r\n"))


@pytest.mark.parametrize("prefix", [PREFIX, b""])
def test_local_addresses_in_answers_become_public_again(prefix: bytes) -> None:
    lines = to_client(
        b"Location: http://127.0.0.1:5000/a\r\nAccess-Control-Allow-Origin: http://127.0.0.1:5000\r\n"
        b"Set-Cookie: a=1; Domain=127.0.0.1\r\n",
        local=LOCAL,
        prefix=prefix,
    )
    assert b"Location: " + prefix + b"/a" in lines
    assert b"Access-Control-Allow-Origin: http://h:1" in lines
    assert b"Set-Cookie: a=1" in lines


def test_the_local_address_is_where_the_job_listens() -> None:
    assert local_host({"port": 5}) == b"127.0.0.1:5"
    assert local_host({"port": 5, "host": "::1"}) == b"[::1]:5"
    assert local_host({"socket": "/s"}) == b"localhost"


ORIGIN_WIDE = [
    b"Service-Worker-Allowed",
    b"Clear-Site-Data",
    b"Alt-Svc",
    b"Strict-Transport-Security",
    b"NEL",
    b"Report-To",
    b"Accept-CH",
    b"Origin-Agent-Cluster",
    b"Public-Key-Pins",
    b"Secure-Session-Registration",
    b"Sec-Session-Registration",
    b"Set-Login",
    b"Shared-Storage-Write",
    b"Use-As-Dictionary",
]


@pytest.mark.parametrize("name", ORIGIN_WIDE)
def test_what_counts_for_a_whole_origin_needs_one_of_its_own(name: bytes) -> None:
    assert not [line for line in to_client(name.lower() + b": /\r\n") if line.lower().startswith(name.lower())]
    if name != b"Clear-Site-Data":
        assert name + b": /" in to_client(name + b": /\r\n", own_host=True)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (b'"cache", "cookies","storage"', b'"cache", "storage"'),
        (b'"*"', b'"cache", "storage", "executionContexts", "clientHints", "prefetchCache", "prerenderCache"'),
        (b'"cookies"', None),
        (b'cookies, "Cookies", ""', None),
    ],
)
def test_no_job_clears_the_cookies_of_its_domain(value: bytes, kept: bytes | None) -> None:
    lines = to_client(b"Clear-Site-Data: " + value + b"\r\n", own_host=True)
    assert [line for line in lines if line.startswith(b"Clear")] == ([b"Clear-Site-Data: " + kept] if kept else [])


CLAIMS = [
    b"X-Forwarded-Ssl: on",
    b"X-Forwarded-Scheme: https",
    b"X-Forwarded-Server: s",
    b"X-Forwarded-User: root",
    b"X-Scheme: https",
    b"Front-End-Https: on",
    b"X-Original-URL: /admin",
    b"X-Original-Host: evil",
    b"X-Rewrite-URL: /admin",
    b"True-Client-IP: 6.6.6.6",
    b"CF-Connecting-IP: 6.6.6.6",
    b"X-Client-IP: 6.6.6.6",
    b"X-Cluster-Client-IP: 6.6.6.6",
]


@pytest.mark.parametrize("line", CLAIMS)
def test_claims_reach_a_job_from_trusted_proxies_only(line: bytes) -> None:
    name, value = line.split(b": ")
    for form in (line, name.upper() + b": " + value):
        assert form not in to_job(form + b"\r\n")
        assert form in to_job(form + b"\r\n", origin=NGINX)
    spelt = name.replace(b"-", b"_", 1) + b": " + value
    for origin in (DIRECT, NGINX):  # a proxy that replaces its own field does not see this one, and lets it pass
        assert spelt not in to_job(spelt + b"\r\n", origin=origin)


def test_fields_for_proxies_go_both_ways() -> None:
    for name in (b"Proxy-Authorization", b"Proxy-Authenticate", b"Proxy-Connection", b"proxy-anything"):
        assert name + b": x" not in to_job(name + b": x\r\n", origin=NGINX)
        assert name + b": x" not in to_client(name + b": x\r\n")
    assert b"Proxy: http://evil" not in to_job(b"Proxy: http://evil\r\n")
    assert b"Proxy-Status: cache; hit" in to_client(b"Proxy-Status: cache; hit\r\n")


def test_nobody_else_speaks_in_the_routers_name() -> None:
    lines = b"X-PRouter-User: evil\r\nx_prouter_user: evil\r\nX-PRouter_Assertion: evil\r\nHTTP2-Settings: evil\r\n"
    assert b"evil" not in to_job(lines)


def test_a_request_tells_the_routers_it_came_through() -> None:
    for lines, hops in ((b"", b"me"), (b"x-prouter-VIA: a, b\r\nX_PRouter_Via: c\r\n", b"a, b, me")):
        head = parse_request(b"GET /x HTTP/1.1\r\nHost: h\r\nVia: 1.1 cdn\r\n" + lines + b"\r\n")
        sent = request_to_job(Forwarded(head, DIRECT), b"/x", PREFIX, site=nowhere, mark=b"me").split(b"\r\n")
        assert [line for line in sent if b"router" in line.lower() and b"via" in line.lower()] == [
            b"X-PRouter-Via: " + hops
        ]
        assert b"Via: 1.1 cdn" in sent


def test_only_a_whole_pseudonym_among_the_hops_is_a_loop() -> None:
    assert came_through([(b"x-prouter-via", b"a,me , b")], b"me")
    assert not came_through([(b"x-prouter-via", b"mee, a"), (b"Other", b"me")], b"me")


def test_pseudonyms_differ_and_tell_nothing() -> None:
    assert pseudonym("/run/a") == pseudonym("/run/a")
    assert len({pseudonym("/run/a"), pseudonym("/run/b"), pseudonym(), pseudonym()}) == 4
    assert re.fullmatch(rb"[0-9a-f]{20}", pseudonym("/run/a"))


def as_code_server_reads_it(lines: list[bytes]) -> bytes:
    """The host that code-server 4 compares with Origin: Forwarded's, quotes and all, else X-Forwarded-Host's."""
    fields = dict(line.split(b": ", 1) for line in lines[1:] if b": " in line)
    for part in re.split(rb"[;,]", fields[b"Forwarded"]):
        key, _, value = part.partition(b"=")
        if key.strip().lower() == b"host" and value:
            return value.strip().lower()
    return fields[b"X-Forwarded-Host"].split(b",")[0].strip().lower()


@pytest.mark.parametrize("host", [b"h", b"h.example.org", b"127.0.0.1", b"h:8888", b"[::1]:8888", b"[::1]"])
def test_a_server_that_does_not_unquote_finds_the_host(host: bytes) -> None:
    head = parse_request(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
    assert (
        as_code_server_reads_it(request_to_job(Forwarded(head, DIRECT), b"/", b"", site=nowhere).split(b"\r\n")) == host
    )
    for told in (
        b"X-Forwarded-Host: " + host,
        b"X-Forwarded-Host: " + host + b"\r\nX-Forwarded-For: 1.2.3.4",
        b'Forwarded: for=1.2.3.4;host="' + host + b'"',
        b'Forwarded: for=1.2.3.4;host="' + host + b'";by="a,b";proto=https',
    ):
        head = parse_request(b"GET / HTTP/1.1\r\nHost: inner\r\n" + told + b"\r\n\r\n")
        assert (
            as_code_server_reads_it(request_to_job(Forwarded(head, NGINX), b"/", b"", site=nowhere).split(b"\r\n"))
            == host
        )


ADDRESSES = (b"/a", PREFIX, b"/", b"//h:1", b"http://h:1", b"http://127.0.0.1:5000", b"https://o", b"?q", b"#f", b"a")
MARKS = (b"<", b">", b'"', b"\\", b";", b",", b"=", b" ", b"'", b"url", b"rel", b"anchor", b"5", b".", b"\xe4")
PIECES = st.sampled_from((*ADDRESSES, *MARKS))


@given(st.lists(PIECES, max_size=12).map(b"".join), st.sampled_from([b"Location", b"Link", b"Refresh", b"Set-Cookie"]))
def test_nothing_is_put_under_the_prefix_twice_or_gets_lost(value: bytes, name: bytes) -> None:
    site = Site(PREFIX, Public(b"http", b"h:1"), names=(b"127.0.0.1:5000",))
    once = site.to_client(name, value)
    assert site.to_client(name, once) == once
    if name in (b"Link", b"Refresh") and b"127.0.0.1" not in value:
        assert len(once) >= len(value)
