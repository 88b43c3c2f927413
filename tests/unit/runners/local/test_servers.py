"""Which connections have reached the job; this test's own sockets stand for the job's, or for somebody else's."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest

from prouter.errors import NotFound
from prouter.runners.local import servers
from prouter.runners.local.listening_sockets import survey
from prouter.runners.local.servers import Look, Servers
from prouter.runners.local.sock_diag import Lookup
from prouter.runners.ownership import Peer, is_peer, peer_of
from prouter.runners.sockets import Address, Sockets
from tests.support.unprivileged import as_ordinary_user


class Stand:
    """`Servers` that look at the processes in `pids`; counts the looks."""

    def __init__(self) -> None:
        self.pids = [os.getpid()]
        self.looks: list[float] = []
        self.assigned: int | None = None
        self.hidden_uids: frozenset[int] = frozenset()
        self.servers = Servers(self.look)

    def look(self, job: str) -> Look:
        self.looks.append(time.monotonic())
        sockets = survey(self.pids)
        return Look(sockets._replace(hidden=[1], hidden_uids=self.hidden_uids), assigned=self.assigned)

    def connect(self, address: Address) -> socket.socket:
        if address.path is not None:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(address.path)
            return connection
        return socket.create_connection((address.host, address.port))

    def refusal(self, address: Address) -> str:
        """What becomes of a new connection."""
        with self.connect(address) as connection:
            identity = self.servers.identify(connection, address)
            if self.servers.knows("j", address, identity):
                return ""
            return self.servers.refusal("j", connection, address, identity)


@pytest.fixture
def stand() -> Iterator[Stand]:
    made = Stand()
    with gevent.Timeout(20):
        yield made
    made.servers.close()


@pytest.fixture
def listen() -> Iterator[Callable[..., socket.socket]]:
    opened: list[socket.socket] = []

    def make(host: str = "127.0.0.1", port: int = 0, *, shared: bool = False, dual: bool = False) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        made = socket.create_server((host, port), family=family, reuse_port=shared, dualstack_ipv6=dual)
        opened.append(made)
        return made

    yield make
    for one in opened:
        one.close()


def port_of(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "127.0.0.9"])
def test_the_jobs_socket_is_looked_for_once_and_known_then(
    stand: Stand, listen: Callable[..., socket.socket], host: str
) -> None:
    address = Address("127.0.0.1" if host == "0.0.0.0" else host, port_of(listen(host)))
    assert [stand.refusal(address) for _ in range(5)] == [""] * 5
    assert len(stand.looks) == 1
    stand.servers.forget("j")
    assert stand.refusal(address) == ""
    assert len(stand.looks) == 2


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_a_socket_for_both_families_is_known_at_both_addresses(
    stand: Stand, listen: Callable[..., socket.socket]
) -> None:
    port = port_of(listen("::", dual=True))
    assert stand.refusal(Address("127.0.0.1", port)) == stand.refusal(Address("::1", port)) == ""
    assert len(stand.looks) == 1


def test_a_port_that_has_become_another_programs_is_refused_and_taken_again(
    stand: Stand, listen: Callable[..., socket.socket]
) -> None:
    listener = listen()
    address = Address(port=port_of(listener))
    assert stand.refusal(address) == ""
    listener.close()
    other = listen(port=address.port)
    stand.pids = []
    assert "another program's" in stand.refusal(address)
    other.close()
    listen(port=address.port)
    stand.pids = [os.getpid()]
    assert stand.refusal(address) == ""


def test_a_more_specific_socket_of_another_program_is_noticed(
    stand: Stand, listen: Callable[..., socket.socket]
) -> None:
    """As where the kernel allows it: IPv6 with another for IPv4, or two that share a port."""
    shared = listen("0.0.0.0", shared=True)
    address = Address(port=port_of(shared))
    assert stand.refusal(address) == ""
    listen("127.0.0.1", address.port, shared=True)
    stand.pids = []
    assert "another program's" in stand.refusal(address)


def test_processes_of_the_job_may_share_a_port(stand: Stand, listen: Callable[..., socket.socket]) -> None:
    first = listen(shared=True)
    for _ in range(3):
        listen(port=port_of(first), shared=True)
    assert [stand.refusal(Address(port=port_of(first))) for _ in range(40)] == [""] * 40
    assert len(stand.looks) == 1


def test_the_kernel_names_every_socket_that_shares_a_port(listen: Callable[..., socket.socket]) -> None:
    first = listen(shared=True)
    second = listen(port=port_of(first), shared=True)
    lookup = Lookup()
    found = {lookup.listener("127.0.0.1", port_of(first)) for _ in range(200)}
    assert found == {os.fstat(one.fileno()).st_ino for one in (first, second)}
    assert lookup.listener("127.0.0.2", port_of(first)) == 0
    lookup.close()


def test_a_connection_whose_listener_was_closed_is_the_jobs_if_a_process_of_it_has_it(
    stand: Stand, listen: Callable[..., socket.socket]
) -> None:
    for pids, refused in (([os.getpid()], False), ([], True)):
        stand.pids = pids
        listener = listen()
        address = Address(port=port_of(listener))
        with stand.connect(address) as connection, listener.accept()[0]:
            listener.close()
            identity = stand.servers.identify(connection, address)
            assert identity == 0
            assert not stand.servers.knows("j", address, identity)
            assert bool(stand.servers.refusal("j", connection, address, identity)) == refused


def test_a_connection_that_nobody_accepted_has_ended_with_its_listener(
    stand: Stand, listen: Callable[..., socket.socket]
) -> None:
    listener = listen()
    address = Address(port=port_of(listener))
    with stand.connect(address) as connection:
        listener.close()
        assert stand.servers.refusal("j", connection, address, stand.servers.identify(connection, address)) == ""
        assert stand.looks == []
        with pytest.raises(OSError, match="reset"):
            connection.send(b"x")


def test_many_refused_connections_share_few_looks(stand: Stand, listen: Callable[..., socket.socket]) -> None:
    address = Address(port=port_of(listen()))
    stand.pids = []
    began = time.monotonic()
    asked = [gevent.spawn(stand.refusal, address) for _ in range(50)]
    gevent.joinall(asked)
    assert all("another program's" in (one.value or "") for one in asked)
    assert len(stand.looks) <= 2 + (time.monotonic() - began) / servers._PAUSE
    assert all(later - former >= servers._PAUSE for former, later in zip(stand.looks, stand.looks[1:], strict=False))


def test_without_netlink_a_port_is_looked_at_again_and_again(
    monkeypatch: pytest.MonkeyPatch, listen: Callable[..., socket.socket]
) -> None:
    def refuse(*_: object) -> Lookup:
        raise OSError(93, "Protocol not supported")

    monkeypatch.setattr(servers, "Lookup", refuse)
    monkeypatch.setattr(servers, "_UNSEEN", 0.05)
    stand = Stand()
    address = Address(port=port_of(listen()))
    assert stand.refusal(address) == stand.refusal(address) == ""
    assert len(stand.looks) == 1
    stand.pids = []
    while not stand.refusal(address):
        gevent.sleep(0.01)


def test_without_netlink_a_port_that_is_the_jobs_vouches_for_no_other(
    monkeypatch: pytest.MonkeyPatch, listen: Callable[..., socket.socket]
) -> None:
    monkeypatch.setattr(Lookup, "listener", refuse_netlink)
    stand = Stand()
    own, foreign = (Address(port=port_of(listen())) for _ in range(2))
    assert stand.refusal(own) == ""
    stand.pids = []
    assert "another program's" in stand.refusal(foreign)


def refuse_netlink(*_: object) -> int:
    raise OSError(93, "Protocol not supported")


def test_a_hidden_process_counts_at_the_assigned_port_only(stand: Stand, listen: Callable[..., socket.socket]) -> None:
    assigned, other = (Address(port=port_of(listen())) for _ in range(2))
    stand.pids, stand.assigned, stand.hidden_uids = [], assigned.port, frozenset({os.getuid()})
    assert stand.refusal(assigned) == ""
    assert "another program's" in stand.refusal(other)
    with pytest.raises(NotFound):
        stand.servers.find("j", other.port)


@pytest.mark.parametrize(
    ("host", "found"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.9", "127.0.0.9")]
)
def test_a_port_is_found_at_the_address_where_the_job_listens(
    stand: Stand, listen: Callable[..., socket.socket], host: str, found: str
) -> None:
    port = port_of(listen(host))
    assert stand.servers.find("j", port) == Address(found, port)
    assert stand.refusal(Address(found, port)) == ""
    assert len(stand.looks) == 1
    stand.servers.find("j", port)
    assert len(stand.looks) == (1 if found == "127.0.0.1" else 2)
    stand.pids = []
    stand.servers.forget("j")
    with pytest.raises(NotFound, match=f"port {port}"):
        stand.servers.find("j", port)


def test_a_port_that_listens_elsewhere_than_on_loopback_is_not_found(
    stand: Stand, listen: Callable[..., socket.socket]
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        host = probe.getsockname()[0]
    if host.startswith("127."):
        pytest.skip("this machine has no other address")
    port = port_of(listen(host))
    with pytest.raises(NotFound) as caught:
        stand.servers.find("j", port)
    assert caught.value.code == "no_such_port"


def test_a_port_that_is_shared_with_another_program_is_not_found(
    stand: Stand, listen: Callable[..., socket.socket]
) -> None:
    own = survey([os.getpid()])
    shared = listen(shared=True)
    port = port_of(shared)
    (mine,) = [one for one in survey([os.getpid()]).own if one.port == port]
    stand.servers._look = lambda _job: Look(own._replace(own=[mine], foreign=[mine._replace(inode=1, pid=0)]), None)
    with pytest.raises(NotFound):
        stand.servers.find("j", port)


def test_a_unix_socket_is_the_jobs_by_the_process_that_listens(stand: Stand, tmp_path: Path) -> None:
    ours, link, hard = tmp_path / "ours", tmp_path / "link", tmp_path / "hard"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(ours))
        listener.listen()
        link.symlink_to(ours)
        hard.hardlink_to(ours)
        for path in (ours, link, hard):
            assert stand.refusal(Address(path=str(path))) == ""
        assert len(stand.looks) == 1
        stand.servers.forget("j")
        stand.pids = []
        for path in (ours, link, hard):
            assert "another program's" in stand.refusal(Address(path=str(path)))


def test_of_a_process_that_ended_only_the_socket_of_that_very_path_counts(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(path)
        listener.listen()
        client.connect(path)
        assert peer_of(client) == Peer(os.getpid(), os.getuid(), path)
        mine = survey([os.getpid()])._replace(pids=frozenset())
    gone = 2**22 + 1
    assert is_peer(Peer(gone, 0, path), path, mine)
    assert not is_peer(Peer(gone, 0, path), path, Sockets([], [], []))
    assert not is_peer(Peer(gone, 0, str(tmp_path / "t")), path, mine)
    assert not is_peer(Peer(1, 0, path), path, mine), "process 1 lives"
    assert not is_peer(Peer(0, 0, path), path, mine), "of another pid namespace"


def test_an_agent_of_an_ordinary_user_tells_its_jobs_from_others() -> None:
    def work() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = Address(port=port_of(listener))
            reading, writing = os.pipe()
            child = os.fork()  # the job, which alone holds the socket from now on
            if child == 0:
                ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, as after exec(2)
                os.write(writing, b"x")
                while True:
                    signal.pause()
        try:
            os.read(reading, 1)
            for pids, refused in (([], True), ([child], False)):
                stand = Stand()
                stand.pids = pids
                assert bool(stand.refusal(address)) == refused
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    as_ordinary_user(work)
