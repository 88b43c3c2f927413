"""The dialled end over libzmq: news that its descriptor has told already."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing

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
