"""The dialled end over libzmq: news that its descriptor has told already."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, closing

import zmq

from prouter.transport.zeromq.context import context
from prouter.transport.zeromq.dealer import DealerConnection

_PIECE = bytes(64 * 1024)


def wait_for(reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)


def test_a_blocked_connection_tells_that_it_may_be_flushed_although_looking_consumed_the_hint() -> None:
    router = context().socket(zmq.ROUTER)
    with closing(router):
        router.setsockopt(zmq.RCVHWM, 1)
        router.setsockopt(zmq.LINGER, 0)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        dealer = DealerConnection(f"tcp://127.0.0.1:{port}")
        with closing(dealer):
            wait_for(lambda: dealer.receive() or dealer.ready)

            def fill() -> bool:
                dealer.queue([b"", _PIECE])
                dealer.flush()
                return dealer.blocked

            wait_for(fill)
            for _ in range(20):  # libzmq's thread hands on more for a while.
                dealer.flush()
                if not dealer.blocked:
                    wait_for(fill)
            before = dealer.sent
            while router.poll(200):
                router.recv_multipart()
            # Only `more` is asked, never the descriptor.
            wait_for(lambda: dealer.more)
            dealer.receive()
            dealer.flush()
            assert dealer.sent > before


def test_a_connection_that_waits_for_its_handshake_does_not_keep_its_loop_busy() -> None:
    with ExitStack() as stack:
        server = stack.enter_context(closing(socket.create_server(("127.0.0.1", 0), backlog=100)))
        endpoint = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        deadline = time.monotonic() + 20
        dealers = [stack.enter_context(closing(DealerConnection(endpoint))) for _ in range(50)]
        for dealer in dealers:
            while not dealer.connected:
                assert time.monotonic() < deadline
                dealer.receive()
        busy = dealers
        while busy:
            assert time.monotonic() < deadline, f"{len(busy)} descriptors stay readable"
            # libzmq's thread may have something to tell even now, but not again and again.
            busy = [dealer for dealer in busy if _readable(dealer)]
            for dealer in busy:
                dealer.receive()


def _readable(dealer: DealerConnection) -> bool:
    poll = select.poll()
    poll.register(dealer.fd, select.POLLIN)
    return bool(poll.poll(0))
