"""What the parts of the proxy may ask of each other.

The classes below are protocols, so that a client's connection, the exchanges on it and the server that owns both need
not import one another: `server` imports `connection`, `exchange` and `tunnel`, and these import this module only.
"""

from __future__ import annotations

from typing import Any, Protocol

from prouter.access.roles import Principal
from prouter.errors import PRouterError
from prouter.fabric.stream import Stream
from prouter.web.proxy.addresses.fields import RequestFields
from prouter.web.proxy.addresses.forwarded import Forwarded, Origin
from prouter.web.proxy.messages.heads import RequestHead
from prouter.web.proxy.upstream import UpstreamPool
from prouter.web.routes import JobRoute

__all__ = ["Client", "ClientExchange", "ExplainedExchange", "JobExchange", "ProxyContext"]


class ClientExchange(Protocol):
    """One request and its response, as the client's connection sees them."""

    @property
    def awaits_client(self) -> bool:
        """Whether nothing of the response was sent and only the client can move on, by sending more of the request."""

    @property
    def recipient(self) -> int:
        """Which counter its response goes to: `prouter.web.metrics.counters.API` or ``JOB``."""

    @property
    def half_close(self) -> bool:
        """Whether a client that has shut down its sending side certainly still reads, as in a tunnel."""

    def on_client_data(self) -> None:
        """Handle new bytes in `Client.buffer`."""

    def on_client_end(self) -> None:
        """Handle the end of the client's sending side (`Client.half_closed`)."""

    def on_client_disconnected(self) -> None:
        """Handle the loss of the client's connection."""

    def on_client_drained(self) -> None:
        """Handle that the kernel has taken all bytes written."""

    def end(self, reason: str) -> None:
        """End at once, because the worker stops: with an error while nothing was sent, else with a cut."""


class JobExchange(ClientExchange, Protocol):
    """An exchange with a job, whose time the server watches."""

    def check_timeout(self, now: float, response: float, body: float) -> None:
        """Give up if nobody has moved for too long.

        Args:
            now: monotonic time.
            response: seconds the job may take to begin its response; 0 for no limit.
            body: seconds the client may pause within its request body; 0 for no limit.
        """


class ExplainedExchange(Protocol):
    """An exchange whose stream ended before the job responded."""

    route: JobRoute | None

    @property
    def waiting(self) -> bool:
        """Whether the client still waits for a response."""

    def fail_with_reason(self, detail: str, *, reached: bool) -> None:
        """Send the error, with how the job ended if it has."""


class Client(Protocol):
    """What an exchange may ask of its client's connection; `prouter.web.proxy.connection` implements it.

    Attributes:
        alive: whether bytes can still be written.
        began: monotonic time at which the request arrived.
        buffer: bytes received that no exchange has taken yet.
        deadline: monotonic time at which the connection is closed unless something happens; 0 for none.
        exchange: the request in progress; None between requests.
        origin: how the client reached the worker.
        principal: who sent the last request; None if its credentials let in nobody.
        receive_size: bytes of one read.
    """

    alive: bool
    began: float
    buffer: bytes
    deadline: float
    exchange: ClientExchange | None
    origin: Origin
    principal: Principal | None
    receive_size: int

    @property
    def half_closed(self) -> bool:
        """Whether the client has shut down its sending side."""

    @property
    def out_size(self) -> int:
        """Bytes written that wait for the kernel."""

    @property
    def server(self) -> ProxyContext:
        """The worker's proxy."""

    def write(self, data: bytes, stream: Stream | None = None, size: int = 0) -> None:
        """Send `data`; once the kernel has it, `size` bytes of `stream` count as consumed."""

    def undelivered(self) -> int:
        """Bytes written that the client's kernel has not acknowledged."""

    def pause(self) -> None:
        """Stop reading until `resume`."""

    def resume(self) -> None:
        """Read again."""

    def expect_body(self, expected: bool) -> None:
        """Choose the size of reads: large while a request body or a tunnel streams."""

    def hold_pipelined(self) -> None:
        """Buffer what arrives, up to a limit; then stop reading."""

    def exchange_done(self, keep_alive: bool) -> None:
        """End the exchange, whose response is written, and begin the next request or close."""

    def fail(self, error: PRouterError, head: RequestHead | None = None, *, keep_alive: bool = False) -> None:
        """Send an error of the router's own and end the exchange."""

    def finish(self) -> None:
        """Close once everything written is sent."""

    def shut_write(self) -> None:
        """Shut down the sending side once everything written is sent."""

    def abort(self) -> None:
        """Reset the connection, so that the client sees that its response was cut."""

    def disconnected(self) -> None:
        """Close, and tell the exchange that the client disconnected."""

    def close(self) -> None:
        """Close at once."""


class ProxyContext(Protocol):
    """What connections and exchanges may ask of the worker's proxy; `prouter.web.proxy.server` implements it.

    Attributes:
        exchanges: exchanges with jobs in progress, tunnels included.
        loop: gevent's event loop.
        pool: connections to jobs.
        draining: whether every response is to close its connection, because the worker stops.
        mark: the router's pseudonym among the hops of a request.
        request_fields: which fields of requests jobs get.
        job_domain: domain of the jobs' own host names, with a dot before it; empty for none.
        own_names_only: whether jobs are served under their own host names only.
        max_head: bytes of a request head.
        head_timeout: seconds a client has for its first request head.
        idle_timeout: seconds a connection may be idle between requests.
        body_timeout: seconds an API request's body may take; 0 for no limit.
        upload_timeout: seconds a client may pause within an upload; 0 for no limit.
    """

    exchanges: set[JobExchange]
    loop: Any
    pool: UpstreamPool
    draining: bool
    mark: bytes
    request_fields: RequestFields
    job_domain: bytes
    own_names_only: bool
    max_head: int
    head_timeout: float
    idle_timeout: float
    body_timeout: float
    upload_timeout: float

    def dispatch(self, client: Client, head: RequestHead, looped: bool) -> None:
        """Start the exchange for a request."""

    def forget(self, client: Client) -> None:
        """Drop a connection that is closed."""

    def client_key(self, forwarded: Forwarded) -> str:
        """Return the key of a client's budgets (`prouter.limits.clients`)."""

    def explain(self, exchange: ExplainedExchange, detail: str, patience: float, *, reached: bool) -> None:
        """Fail `exchange` as soon as it is known whether its job has ended."""
