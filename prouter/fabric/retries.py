"""Which calls without a reply to resend over a new path, so that one that breaks every path is found.

Calls survive a lost path because the caller resends them over the next one. If a call is what breaks the path (say, its
receiver crashes on it), it breaks every path, and no other call ever succeeds. Nobody can see which call it is. But the
path broke soon after that call was sent, each time:

- A call that was sent less than `SOON` before its path was lost gets a mark; a call that was sent earlier loses its
  marks.
- While no call has `MARKS` - 1 marks, all are resent at once: brokers restart and networks break for other reasons.
- From then on the caller first waits whether the new path lives for `STEP` without any call; if not, no call is to
  blame. Then it tries them: one alone, the one with the most marks first, then two, four and so on, each time when
  those before have their replies or `STEP` has passed. New calls wait meanwhile.
- A call that was tried alone when it got its `MARKS`-th mark, or a later one, is given up.

Among a thousand calls the one to blame is tried alone after ten more paths at most.
"""

from __future__ import annotations

__all__ = ["MARKS", "SOON", "STEP", "Retries"]

SOON = 2.0
"""Seconds after a call was sent in which it may be what breaks the path."""
STEP = 0.5
"""Seconds after which the calls that were tried last count as harmless."""
MARKS = 6
"""Marks at which a call that was tried alone is given up."""


class Retries:
    """Decides for the calls to one peer when each is sent, and which is given up.

    Calls are known by their ids. Times are seconds of any monotonic clock.
    """

    def __init__(self) -> None:
        self._marks: dict[str, int] = {}
        """Marks of every call without a reply, the oldest call first."""
        self._sent: dict[str, float] = {}
        """When each call was sent over the present path, if it was."""
        self._held: dict[str, None] = {}
        """Calls that wait to be tried, in order."""
        self._tried: set[str] = set()
        """Calls that are tried now."""
        self._count = 0
        """How many are tried at once; 0 while it is not known whether the path lives without them."""
        self._until = 0.0

    def add(self, call_id: str, now: float, *, up: bool) -> bool:
        """Add a new call; whether to send it now.

        Args:
            up: whether there is a path.
        """
        self._marks[call_id] = 0
        if not up:
            return False
        if self._held or self._tried:
            # It may not disturb the search: a path that breaks now would put the blame on it.
            self._held[call_id] = None
            return False
        self._sent[call_id] = now
        return True

    def remove(self, call_id: str) -> None:
        """Forget a call that has its reply, or that nobody waits for any more. Idempotent."""
        if self._marks.pop(call_id, None) is not None:
            self._sent.pop(call_id, None)
            self._held.pop(call_id, None)
            self._tried.discard(call_id)

    def path_lost(self, now: float) -> list[str]:
        """Mark the calls that may be why the path is lost; return those to give up, which the owner removes."""
        # The path broke before any call was tried: none of them is to blame, for the earlier losses neither.
        if self._held and not self._count:
            self._marks = dict.fromkeys(self._marks, 0)
        recent = 0
        for call_id, at in self._sent.items():
            if now - at <= SOON:
                recent += 1
                self._marks[call_id] += 1
            else:
                self._marks[call_id] = 0
        # With several recent calls nobody knows which one it was.
        found = list(self._sent) if recent == 1 else []
        self._sent.clear()
        self._held.clear()
        self._tried.clear()
        return [call_id for call_id in found if self._marks[call_id] >= MARKS]

    def path_up(self, now: float) -> list[str]:
        """Return the calls to send over a new path now; if some have to wait, `due` returns them later."""
        if max(self._marks.values(), default=0) < MARKS - 1:
            self._sent = dict.fromkeys(self._marks, now)
            self._held.clear()
            self._tried.clear()
            return list(self._sent)
        # sorted() is stable: among calls with as many marks the oldest stays first.
        self._held = dict.fromkeys(sorted(self._marks, key=lambda call_id: -self._marks[call_id]))
        self._count = 0
        self._until = now + STEP
        return []

    @property
    def deadline(self) -> float | None:
        """When to call `due`, None when no call waits."""
        return self._until if self._held or self._tried else None

    def due(self, now: float) -> list[str]:
        """Return the calls to try now, if those before them have done no harm."""
        if not (self._held or self._tried) or (now < self._until and (self._tried or not self._count)):
            return []
        for call_id in self._tried:
            self._marks[call_id] = 0
        # Doubling: many harmless calls are soon let through, and one that is not is found among few.
        self._count = 2 * self._count or 1
        found = [call_id for call_id, _ in zip(self._held, range(self._count), strict=False)]
        for call_id in found:
            del self._held[call_id]
        self._tried = set(found)
        self._until = now + STEP
        self._sent.update(dict.fromkeys(found, now))
        return found
