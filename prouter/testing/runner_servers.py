"""Rules about connections to jobs' servers, part of `prouter.testing.runner_conformance`."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
from gevent import socket as green

from prouter.errors import JobUnreachable, NotFound, PRouterError
from prouter.runners import Address, Capabilities
from prouter.testing.bench import Bench
from prouter.testing.recorded_reports import until

__all__ = ["Servers"]

SERVER = """
import os, socket, sys, threading
where = sys.argv[1]
if where.startswith("/"):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(where)
else:
    listener = socket.socket(socket.AF_INET6 if ":" in where else socket.AF_INET)
    listener.bind((where, int(sys.argv[2]) if sys.argv[2:] else 0))
listener.listen(128)
with open("port.new", "w") as file:
    file.write(str(listener.getsockname()[1] if not where.startswith("/") else 0) + "\\n")
os.rename("port.new", "port")
def serve(peer):
    data = b"".join(iter(lambda: peer.recv(65536), b""))
    peer.sendall(data[::-1] + b" of " + os.environ["PROUTER_JOB_ID"].encode())
    peer.close()
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
"""Answers all that it is sent, once that has ended, backwards and with the job's uid; its port is in a file."""
REPORTER = """
import os, sys, urllib.request, urllib.error
for port in sys.argv[1:]:
    url = f"{os.environ['REPORT_TO']}?job_id={os.environ['PROUTER_JOB_ID']}&port={port}"
    try:
        print(urllib.request.urlopen(url, timeout=20).status, flush=True)
    except urllib.error.HTTPError as error:
        print(error.code, flush=True)
"""
_CONNECT_TIMEOUT = 10.0


class Servers:
    """How the agent reaches the servers of jobs, and nobody else's."""

    bench: ClassVar[Bench]
    python: ClassVar[Sequence[str]]
    capabilities: ClassVar[Capabilities]

    def _serving(self, *where: str) -> Any:
        return self.bench.running(*self.python, "-c", SERVER, *(where or ("127.0.0.1",)))

    def _port(self, job: str) -> int:
        return int(self.bench.file(job, "port"))

    def _ask(self, job: str, address: Address, data: bytes = b"abc") -> bytes:
        """Send bytes and their end, and return the answer up to its end."""
        return self._talk(self.bench.runner.connect(job, address, _CONNECT_TIMEOUT), data)

    def _talk(self, connection: socket.socket, data: bytes = b"abc") -> bytes:
        assert connection.getblocking() is False, "the relay must never wait in a call"
        with green.socket(connection.family, connection.type, fileno=connection.detach()) as talk:
            talk.settimeout(self.bench.patience)
            talk.sendall(data)
            talk.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: talk.recv(65536), b""))

    def test_server_on_loopback_is_reached(self) -> None:
        """An unmodified server listens on loopback where it runs. Both directions pass, and end one after the other."""
        with self._serving() as job:
            address = Address("127.0.0.1", self._port(job))
            assert self._ask(job, address) == b"cba of " + job.encode()

    @pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="this machine has no IPv6")
    def test_server_on_ipv6_loopback_is_reached(self) -> None:
        """Some programs listen on ``::1`` only."""
        with self._serving("::1") as job:
            assert self._ask(job, Address("::1", self._port(job))) == b"cba of " + job.encode()

    def test_server_on_a_unix_socket_is_reached(self) -> None:
        """A socket in the sandbox needs no port, and is what several presets use."""
        path = self.bench.directory / "s"
        with self._serving(str(path)) as job:
            self.bench.file(job, "port")
            assert self._ask(job, Address(path=str(path))) == b"cba of " + job.encode()

    def test_connections_at_once_lead_to_the_job(self) -> None:
        """The event loop asks for one before each `connect`, so it does not wait, and is as sure of whom it reaches."""
        runner = self.bench.runner
        with self._serving() as job:
            address = Address("127.0.0.1", self._port(job))
            for _ in range(3):
                assert not runner.exiting(job)
                connection = runner.connect_at_once(job, address)
                if connection is not None:
                    assert self._talk(connection) == b"cba of " + job.encode()
                assert self._ask(job, address) == b"cba of " + job.encode()

    def test_large_answers_pass_whole(self) -> None:
        """Four megabytes there and back: more than any buffer on the way."""
        data = os.urandom(4 << 20)
        with self._serving() as job:
            answer = self._ask(job, Address("127.0.0.1", self._port(job)), data)
            assert answer == data[::-1] + b" of " + job.encode()

    def test_many_connections_do_not_mix(self) -> None:
        """A browser opens many connections at once."""
        with self._serving() as job:
            address = Address("127.0.0.1", self._port(job))
            answers = self.bench.together(lambda number: self._ask(job, address, b"%d" % number), 20)
            assert answers == [(b"%d" % number)[::-1] + b" of " + job.encode() for number in range(20)]

    def test_closed_port_refuses(self) -> None:
        """While a server starts, the agent tries again and again: an attempt that finds nobody fails soon."""
        with self._serving() as job:
            self._port(job)
            with pytest.raises((OSError, PRouterError)):
                self.bench.runner.connect(job, Address("127.0.0.1", _unused()), _CONNECT_TIMEOUT)

    def test_port_of_another_job_is_refused(self) -> None:
        """Whoever may use one job must not reach another through it: the runner finds out who got the connection."""
        with self._serving() as other, self._serving() as job:
            self._port(job)
            with pytest.raises((JobUnreachable, OSError)):
                self._ask(job, Address("127.0.0.1", self._port(other)))
            with pytest.raises(NotFound) as caught:
                self.bench.runner.find(job, self._port(other))
            assert caught.value.code == "no_such_port"

    def test_port_of_another_program_is_refused(self) -> None:
        """The same for services of the machine itself, such as the agent's own control port or a database."""
        if not self.capabilities.same_machine:
            pytest.skip("jobs run on another machine, where the suite has no program of its own")
        with socket.create_server(("127.0.0.1", 0)) as listener, self._serving() as job:
            self._port(job)
            number = int(listener.getsockname()[1])
            with pytest.raises(JobUnreachable):
                self.bench.runner.connect(job, Address("127.0.0.1", number), _CONNECT_TIMEOUT)
            with pytest.raises(NotFound):
                self.bench.runner.find(job, number)
            assert number not in [one.port for one in self.bench.runner.listeners(job).own]
            assert number in [one.port for one in self.bench.runner.listeners(job).foreign]

    def test_assigned_port_of_another_job_is_refused(self) -> None:
        """That the agent chose a port does not make it the job's: another program may have been faster."""
        with self._serving() as other, self._serving() as job:
            self._port(job)
            address = Address("127.0.0.1", self._port(other))
            with pytest.raises((JobUnreachable, OSError)):
                self.bench.runner.connect(job, address, _CONNECT_TIMEOUT, assigned=True)

    def test_unix_socket_of_another_job_is_refused(self) -> None:
        """A path may lead to anybody's socket, for example by a link."""
        path = self.bench.directory / "o"
        with self._serving(str(path)) as other, self._serving() as job:
            self.bench.file(other, "port")
            self._port(job)
            with pytest.raises((JobUnreachable, OSError)):
                self._ask(job, Address(path=str(path)))
        path.unlink(missing_ok=True)

    @pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="this machine has no IPv6")
    def test_same_port_of_another_address_is_refused(self) -> None:
        """A port alone names nobody: the job may listen at ``::1`` while another has the same port of 127.0.0.1."""
        with self._serving("::1") as job:
            number = self._port(job)
            with self._serving("127.0.0.1", str(number)) as other:
                self._port(other)
                with pytest.raises((JobUnreachable, OSError)):
                    self._ask(job, Address("127.0.0.1", number))
                assert self.bench.runner.find(job, number) == Address("::1", number)

    def test_listeners_are_found(self) -> None:
        """How the agent detects the port of a program that does not tell it, also one that a child of it opened."""
        with self.bench.running("sh", "-c", '"$0" "$@" & wait', *self.python, "-c", SERVER, "127.0.0.1") as job:
            port = self._port(job)
            found = [one for one in self.bench.runner.listeners(job).own if one.port == port]
            assert [(one.family, one.host) for one in found] == [("ipv4", "127.0.0.1")]
            assert self.bench.runner.find(job, port) == Address("127.0.0.1", port)

    def test_job_without_servers_has_no_listeners(self) -> None:
        """Nothing of anybody else counts as the job's."""
        with self.bench.running("sleep", "600") as job:
            assert self.bench.runner.listeners(job).own == []

    def test_ended_job_is_not_reached(self) -> None:
        """Its port may be another program's by now."""
        with self._serving() as job:
            address = Address("127.0.0.1", self._port(job))
            self.bench.runner.kill(job)
            self.bench.end(job)
            with pytest.raises((OSError, PRouterError)):
                self._ask(job, address)

    def test_assigned_port_is_reached(self) -> None:
        """The agent chose the port (`SpawnSpec.port`) and says so when it connects."""
        with self._serving() as job:
            connection = self.bench.runner.connect(
                job, Address("127.0.0.1", self._port(job)), _CONNECT_TIMEOUT, assigned=True
            )
            connection.close()

    def test_ports_are_reported_where_the_job_runs(self) -> None:
        """Programs made for the original report their ports at a URL on loopback, by GET with job_id and port.

        The answer is 200, or 400 if the agent refuses the report.
        """
        if self.capabilities.same_machine:
            pytest.skip("jobs run on the agent's machine, and report to the agent itself")
        self.bench.reports.refused_ports.add(7777)
        spec = self.bench.spec(*self.python, "-c", REPORTER, "8001", "7777", report_variable="REPORT_TO")
        assert self.bench.end(self.bench.start(spec).job).exit_code == 0
        assert self.bench.output(spec.job) == b"200\n400\n"
        until(lambda: self.bench.reports.ports[spec.job] == [8001], self.bench.patience, "the port is reported")


def _unused() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
