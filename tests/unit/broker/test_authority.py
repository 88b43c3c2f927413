"""What the core wants to say is queued for each peer, whatever becomes of what it says to others."""

from __future__ import annotations

from prouter.broker.authority import CoreAuthority
from prouter.broker.base.switch import Path
from prouter.broker.sockets.port import Port
from prouter.fabric.bounds import MAX_PAYLOAD
from prouter.fabric.calls import event_frame
from prouter.fabric.frames import EVENT, Frame
from prouter.fabric.session import Session
from tests.support.broker_world import World


class _Owner:
    """A peer that notes the loss of its path."""

    path: Path | None = None

    def __init__(self) -> None:
        self.losses: list[str] = []

    def lost(self, path: Path, reason: str, now: float, *, closed: bool) -> None:
        self.losses.append(reason)

    def left(self, path: Path, reason: str, now: float) -> None:
        raise AssertionError("nobody says goodbye")


def test_what_cannot_be_sent_to_one_peer_costs_no_other_anything() -> None:
    world = World()
    authority = CoreAuthority(world.env)
    authority.broker = world.broker
    paths, owners, dirty = [], [], list[Port]()
    for _ in range(3):
        path = Path(Port(dirty), b"", Session(0.0, 2.0), 0.0)
        path.owner = owner = _Owner()
        paths.append(path)
        owners.append(owner)
    for path in paths:
        world.env.outbox.say(path, event_frame("draining", {}))
    world.env.outbox.say(paths[1], Frame(EVENT, payload=bytes(MAX_PAYLOAD + 1)))
    authority.flush(world.now)
    assert [owner.losses for owner in owners] == [[], ["the connection was closed"], []]
    assert [path.pending for path in paths] == [[], [], []]
    assert len(paths[2].carrier._early) == 1
    assert world.env.counts["failures"] == 1
