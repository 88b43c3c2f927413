"""Which unanswered calls to send again over a new path, so that one that breaks every path is found and given up.

Calls survive lost paths by being repeated. A call that is why the path is lost would be repeated for ever, and take all
others with it. Nobody can see which one it is; but the path broke soon after it was sent, each time:

- A call that was sent less than `SOON` before its path was lost gets a mark; one that was not loses its marks.
- While calls have fewer than five marks, all are sent again at once: brokers are restarted and networks break, too.
- From then on they are tried, once the path has lived for `STEP` without them (if it does not, it is not their fault):
  one alone, those with most marks first, then two, then four, and so on, each when the ones before are answered or
  `STEP` has passed. New calls wait meanwhile.
- A call that was alone when it got its sixth mark, or a later one, is given up.

Among a thousand innocent ones the guilty one is alone ten paths later at most.
"""

from __future__ import annotations

__all__ = ["MARKS", "SOON", "STEP", "Retries"]

SOON = 2.0
"""Seconds after a call was sent for which it may be why the path is lost."""
STEP = 0.5
"""Seconds after which a path counts as unharmed by the calls that were tried."""
MARKS = 6
"""Marks with which a call is given up."""


class Retries:
    """The unanswered calls of one peer, by their ids; see the module's docstring. Times are seconds, monotonic."""

    def __init__(self) -> None:
        self._marks: dict[str, int] = {}
        """Of every unanswered call, oldest first."""
        self._sent: dict[str, float] = {}
        """Those that were sent over this path, and when."""
        self._held: dict[str, None] = {}
        """Those that wait for their turn, in order."""
        self._tried: set[str] = set()
        """Those that are tried now."""
        self._count = 0
        """How many are tried at once; 0 while it is seen whether the path lives without them."""
        self._until = 0.0

    def add(self, call_id: str, now: float, *, up: bool) -> bool:
        """A new call: whether to send it now; `up` tells whether there is a path."""
        self._marks[call_id] = 0
        if not up:
            return False
        if self._held or self._tried:
            self._held[call_id] = None
            return False
        self._sent[call_id] = now
        return True

    def remove(self, call_id: str) -> None:
        """The call was answered, or is not waited for any more. Idempotent."""
        if self._marks.pop(call_id, None) is not None:
            self._sent.pop(call_id, None)
            self._held.pop(call_id, None)
            self._tried.discard(call_id)

    def path_lost(self, now: float) -> list[str]:
        """The path is gone: the calls to give up; `remove` them."""
        if self._held and not self._count:
            self._marks = dict.fromkeys(self._marks, 0)
        recent = 0
        for call_id, at in self._sent.items():
            if now - at <= SOON:
                recent += 1
                self._marks[call_id] += 1
            else:
                self._marks[call_id] = 0
        found = list(self._sent) if recent == 1 else []
        self._sent.clear()
        self._held.clear()
        self._tried.clear()
        return [call_id for call_id in found if self._marks[call_id] >= MARKS]

    def path_up(self, now: float) -> list[str]:
        """There is a path: the calls to send now. `due` gives the others, if any have to wait."""
        if max(self._marks.values(), default=0) < MARKS - 1:
            self._sent = dict.fromkeys(self._marks, now)
            self._held.clear()
            self._tried.clear()
            return list(self._sent)
        # sorted() keeps the order of those with as many marks: oldest first.
        self._held = dict.fromkeys(sorted(self._marks, key=lambda call_id: -self._marks[call_id]))
        self._count = 0
        self._until = now + STEP
        return []

    @property
    def deadline(self) -> float | None:
        """When to ask for `due`, None when nothing waits."""
        return self._until if self._held or self._tried else None

    def due(self, now: float) -> list[str]:
        """The calls to send now, as those before have done no harm."""
        if not (self._held or self._tried) or (now < self._until and (self._tried or not self._count)):
            return []
        for call_id in self._tried:
            self._marks[call_id] = 0
        self._count = 2 * self._count or 1
        found = [call_id for call_id, _ in zip(self._held, range(self._count), strict=False)]
        for call_id in found:
            del self._held[call_id]
        self._tried = set(found)
        self._until = now + STEP
        self._sent.update(dict.fromkeys(found, now))
        return found
