"""Listening sockets and their processes, from netlink and from /proc."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from prouter.runners.local import listening_sockets, sock_diag
from prouter.runners.local.listening_sockets import survey


@pytest.fixture
def opened() -> Iterator[set[tuple[str, str, int]]]:
    """Family, address and port of listening sockets of this process; one more is only bound, one is connected."""
    found = set()
    with contextlib.ExitStack() as stack:
        for host in ("127.0.0.1", "0.0.0.0", "127.8.9.10", "::1", "::", "::ffff:127.0.0.1"):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            server = stack.enter_context(socket.socket(family))
            try:
                server.bind((host, 0))
            except OSError:
                continue  # No IPv6 on this machine.
            server.listen()
            found.add(("ipv6" if ":" in host else "ipv4", host, server.getsockname()[1]))
        stack.enter_context(socket.socket()).bind(("127.0.0.1", 0))
        port = next(port for _, host, port in found if host == "127.0.0.1")
        stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        yield found


@pytest.mark.parametrize("by_netlink", [True, False])
def test_exactly_the_listening_sockets_are_found(
    opened: set[tuple[str, str, int]], by_netlink: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening_sockets, "_has_sock_diag", by_netlink)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"\0prouter-test-{os.getpid()}")
        unix.listen()
        sockets = survey([os.getpid()])
    mine = {(one.family, one.host, one.port) for one in sockets.own if one.family != "unix"}
    assert opened <= mine
    assert ("unix", f"@prouter-test-{os.getpid()}", 0) in {one[:3] for one in sockets.own}
    assert {one.pid for one in sockets.own} == {os.getpid()}
    assert not opened & {(one.family, one.host, one.port) for one in sockets.foreign}
    assert not sockets.hidden


@pytest.mark.parametrize("by_netlink", [True, False])
def test_what_others_listen_on_is_foreign(
    opened: set[tuple[str, str, int]], by_netlink: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening_sockets, "_has_sock_diag", by_netlink)
    sockets = survey(())
    assert not sockets.own
    assert opened <= {(one.family, one.host, one.port) for one in sockets.foreign}


def test_many_listening_sockets_come_in_several_datagrams() -> None:
    with contextlib.ExitStack() as stack:
        ports = set()
        for _ in range(700):
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            ports.add(server.getsockname()[1])
        assert ports <= {port for _, port, *_ in sock_diag.listening(socket.AF_INET)}
        assert ports <= {one.port for one in survey([os.getpid()]).own}


def test_where_netlink_does_not_answer_proc_does(
    opened: set[tuple[str, str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening_sockets, "_has_sock_diag", True)
    monkeypatch.setattr(sock_diag, "_SOCK_DIAG_BY_FAMILY", 99)
    with pytest.raises(OSError, match="Invalid argument"):
        list(sock_diag.listening(socket.AF_INET))
    assert opened <= {(one.family, one.host, one.port) for one in survey([os.getpid()]).own}
    assert not listening_sockets._has_sock_diag


def test_a_process_that_is_gone_has_none() -> None:
    assert survey([2**22 + 1]).own == []
