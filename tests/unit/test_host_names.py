"""Host names that the router knows: the protection against DNS rebinding."""

from __future__ import annotations

import socket

import pytest
from pydantic import ValidationError

from prouter.config import RouterConfig
from prouter.host_names import HostNames
from prouter.web.proxy.addresses.forwarded import Forwarded, Origin
from prouter.web.proxy.messages.heads import parse_request

MACHINE = socket.gethostname()
CONFIGURED = HostNames(["router.example.org", "*.Lab.example.org", "10.0.0.300.example"])


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:8888",
        "localhost.",
        "localhost.:80",
        "a.b.localhost:1",
        "127.0.0.1",
        "127.8.9.10:8888",
        "[::1]",
        "[::1]:8888",
        MACHINE,
        MACHINE.upper() + ".:8888",
        socket.getfqdn(),
        "router.example.org",
        "ROUTER.example.org.:443",
        "gpu.lab.example.org",
        "a.b.lab.example.org:1",
    ],
)
def test_names_of_ours_are_accepted(host: str) -> None:
    assert CONFIGURED.accept(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8888",
        "evil",
        "",
        ":8888",
        ".",
        "localhost.evil.example",
        "notlocalhost",
        "127.0.0.1.evil.example",
        "127.0.0.1%.evil.example",
        "127.1",
        "0.0.0.0",
        "[::]:8888",
        "192.0.2.7:8888",
        "[2001:db8::1]",
        "224.0.0.1",
        "0x7f000001",
        "[::1].evil.example",
        "[evil.example]",
        "lab.example.org",
        "evillab.example.org",
        "router.example.org.evil.example",
        "xrouter.example.org",
        "example.org",
        "*",
        "*.lab.example.org.evil",
    ],
)
def test_other_names_are_not(host: str) -> None:
    assert not CONFIGURED.accept(host)


@pytest.mark.parametrize("host", ["192.0.2.7:8888", "[2001:db8::1]", "[fe80::1%25eth0]:1", "127.0.0.1"])
def test_beyond_loopback_any_address_may_be_ours(host: str) -> None:
    assert HostNames(any_address=True).accept(host)


def test_addresses_of_this_machine_are_ours() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address but loopback")
        assert HostNames().accept(f"{probe.getsockname()[0]}:8888")


def test_an_address_of_another_machine_may_be_listed() -> None:
    assert HostNames(["192.0.2.7"]).accept("192.0.2.7:8888")


def test_any_name_will_do_if_the_list_says_so() -> None:
    assert HostNames(["*"]).accept("evil.example:8888")


@pytest.mark.parametrize(
    "entry", ["", "http://x.example", "x.example:80", "x.example/a", "*x.example", "a.*.example", "a b", "**", "*."]
)
def test_an_entry_that_is_no_name_is_refused(entry: str) -> None:
    with pytest.raises(ValidationError, match="is no host name"):
        RouterConfig.model_validate({"control": {"hosts": [entry]}})


@pytest.mark.parametrize("entry", ["10.0.0.7", "[::1]", "2001:db8::1", "A.example.", "*"])
def test_entries_may_be_addresses_and_absolute_names(entry: str) -> None:
    assert RouterConfig.model_validate({"control": {"hosts": [entry]}}).control.hosts


@pytest.mark.parametrize(
    ("lines", "trusted", "used"),
    [
        ("Host: h:1", False, ["h:1"]),
        ("Host: h:1\r\nX-Forwarded-Host: pub", False, ["h:1"]),
        ("Host: h:1\r\nX-Forwarded-Host: pub:2", True, ["pub:2"]),
        ("Host: h\r\nX-Forwarded-Host: claimed, pub", True, ["claimed", "pub"]),
        ("Host: h\r\nX-Forwarded-Host: claimed\r\nX-Forwarded-Host: pub", True, ["claimed", "pub"]),
        ('Host: h\r\nForwarded: for=1.2.3.4;host="a:1", host=b', True, ["a:1", "b"]),
        ("Host: h\r\nForwarded: for=1.2.3.4\r\nX-Forwarded-Host:", True, ["h"]),
        ("Host: h", True, ["h"]),
    ],
)
def test_a_trusted_proxy_tells_the_name_that_counts(lines: str, trusted: bool, used: list[str]) -> None:
    head = parse_request(f"GET / HTTP/1.1\r\n{lines}\r\n\r\n".encode())
    assert list(Forwarded(head, Origin("127.0.0.1", 1, trusted)).hosts) == used


def test_the_host_of_an_absolute_target_counts() -> None:
    head = parse_request(b"GET http://evil.example/info HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert Forwarded(head, Origin("127.0.0.1", 1, False)).hosts == ("evil.example",)


def test_an_old_client_without_host_is_taken_for_a_local_one() -> None:
    head = parse_request(b"GET /info HTTP/1.0\r\n\r\n")
    assert HostNames().accept(*Forwarded(head, Origin("127.0.0.1", 1, False)).hosts)


@pytest.mark.parametrize(
    "domain",
    ["http://jobs.example.org", "jobs.example.org:8888", "*.localhost", "jobs.example.org/x", "127.0.0.1", "a b"],
)
def test_what_is_no_domain_for_jobs_is_refused_when_the_router_starts(domain: str) -> None:
    with pytest.raises(ValidationError, match=r"such as 'jobs\.example\.org'"):
        RouterConfig.model_validate({"control": {"job_domain": domain}})


@pytest.mark.parametrize("domain", ["jobs.example.org", "Jobs.Example.org.", ".jobs.example.org"])
def test_a_domain_for_jobs_is_taken_without_case_and_dots_around_it(domain: str) -> None:
    assert RouterConfig.model_validate({"control": {"job_domain": domain}}).control.job_domain == "jobs.example.org"


def test_jobs_under_their_own_names_alone_need_a_domain() -> None:
    with pytest.raises(ValidationError, match=r"needs control\.job_domain"):
        RouterConfig.model_validate({"control": {"job_domain_only": True}})
    alone = RouterConfig.model_validate({"control": {"job_domain_only": True, "job_domain": "localhost"}})
    assert alone.control.job_domain_only
