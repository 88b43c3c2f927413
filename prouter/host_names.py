"""Host names that a server answers to, as a protection against DNS rebinding.

A page of ``evil.example`` can let that name point to 127.0.0.1 once the page is loaded. For the browser the page and
this API are then one origin, so neither the same-origin policy nor a comparison of Origin with Host helps. But such a
request still has the attacker's name in Host, and is refused for it. IP addresses are safe in Host: no page can let one
point elsewhere. A server on loopback accepts those of its own machine. One that listens beyond loopback accepts any: it
cannot know by which address clients reach it, for example through a forwarded port.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

__all__ = ["HostNames", "check_domain", "check_pattern", "check_public_url", "host_of"]

_PATTERN = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*\.?")
_BRACKETED = re.compile(r"\[([^\]]*)\](?::[0-9]*)?")
_ANY = "*"
_PUBLIC_URL = re.compile(
    r"(https?)://([a-z0-9_.-]+(?::[0-9]{1,5})?|\[[0-9a-f:.]+\](?::[0-9]{1,5})?)((?:/[A-Za-z0-9._~-]+)*)", re.IGNORECASE
)


def host_of(authority: str) -> str:
    """Return the host in the value of Host, in lower case, without port, brackets or the final dot of a full name."""
    bracketed = _BRACKETED.fullmatch(authority)
    if bracketed is not None:
        return bracketed[1].lower()
    return authority.partition(":")[0].lower().rstrip(".")


def check_pattern(text: str) -> str:
    """Return an entry of ``control.hosts`` as it is compared: in lower case, without a dot at its end.

    Raises:
        ValueError: it is no host name, IP address, ``*.`` followed by a name, or ``*``.
    """
    found = text.lower()
    if found == _ANY or _PATTERN.fullmatch(found) is not None:
        return found.rstrip(".")
    if _address(found.strip("[]")) is not None:
        return found.strip("[]")
    raise ValueError(
        f"'{text}' is no host name: give names without scheme, port or path, such as 'router.example.org', "
        "'*.example.org' for all names below it, or '*' for any"
    )


def check_domain(text: str) -> str:
    """Return ``control.job_domain`` as it is compared: in lower case, without dots around it.

    Raises:
        ValueError: it is no domain below which there can be host names.
    """
    found = text.strip(".").lower()
    if "*" in found:
        raise ValueError(f"'{text}' has a '*'; give the domain alone, such as 'jobs.example.org': jobs are below it")
    if _PATTERN.fullmatch(found) is None or _address(found) is not None:
        raise ValueError(
            f"'{text}' is no domain: give a name without scheme, port or path, such as 'jobs.example.org', or "
            "'jobs.localhost' for browsers on this machine"
        )
    return found


def check_public_url(text: str) -> str:
    """Return ``control.url`` without a slash at its end, its scheme and host in lower case.

    Raises:
        ValueError: it is no http or https URL of a host and maybe a path.
    """
    match = _PUBLIC_URL.fullmatch(text.rstrip("/"))
    if match is None or (_PATTERN.fullmatch(host_of(match[2]).lower()) is None and _address(host_of(match[2])) is None):
        raise ValueError(
            f"'{text}' is no public URL: give scheme and host, maybe a port and a path, such as "
            "'https://prouter.example.org'"
        )
    return f"{match[1].lower()}://{match[2].lower()}{match[3]}"


@lru_cache(256)
def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _is_of_this_machine(address: IPv4Address | IPv6Address) -> bool:
    """Whether an interface of this machine has the address; only then can a socket be bound to it."""
    if address.is_unspecified or address.is_multicast:
        return False
    try:
        with socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


@lru_cache(1)
def _full_name() -> str:
    """Return the machine's full name as the resolver knows it."""
    return host_of(socket.getfqdn())


class HostNames:
    """Decides whether a server answers to the host of a request.

    It always accepts ``localhost`` and names below it, the machine's own names and its IP addresses.

    Args:
        patterns: further names, as `check_pattern` accepts them.
        any_address: whether to accept literal IP addresses of other machines as well.
        resolve: whether to ask the resolver for the machine's full name; that may block for seconds, once.
    """

    def __init__(self, patterns: Iterable[str] = (), *, any_address: bool = False, resolve: bool = True) -> None:
        checked = [check_pattern(pattern) for pattern in patterns]
        self._any = _ANY in checked
        self._any_address = any_address
        self._resolve = resolve
        self._names = frozenset(checked)
        self._below = tuple(pattern[1:] for pattern in checked if pattern.startswith("*."))

    def accept(self, authority: str) -> bool:
        """Whether a request may have this value of Host.

        Args:
            authority: the value of Host: a host, and maybe a colon and a port, which is ignored.
        """
        if self._any:
            return True
        host = host_of(authority)
        if host == "localhost" or host.endswith(".localhost") or host in self._names:
            return True
        if not host or host.endswith(self._below):
            return bool(host)
        address = _address(host)
        if address is not None:
            return self._any_address or address.is_loopback or _is_of_this_machine(address)
        return host == host_of(socket.gethostname()) or (self._resolve and host == _full_name())
