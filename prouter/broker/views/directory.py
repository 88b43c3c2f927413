"""The list of connections that clients poll, as JSON. It is written once per version, so a hundred pollers cost one.

Workers hand it on as it is, without asking while its version, which they see in shared memory, is the current one. So
the version is raised when the list shows something else, before anybody is told of it. Of each link, what stays and
what changes is written apart.
"""

from __future__ import annotations

import json
from bisect import bisect
from math import inf
from typing import Any

from prouter.broker.base.env import Env
from prouter.broker.base.timers import Timer
from prouter.broker.jobs.ledger import Ledger
from prouter.broker.links.connection_info import connection_figures, connection_identity
from prouter.broker.links.hello import AgentInfo
from prouter.broker.links.link import Link
from prouter.broker.links.links import Links
from prouter.broker.links.warm import read_figures
from prouter.fabric.bounds import MAX_PAGE
from prouter.fabric.frames import pack_body
from prouter.resources import read_amounts

__all__ = ["Directory"]

_FIGURES_AGE = 2.0
"""Seconds for which the list may show old loads, latencies and numbers of jobs."""

_SLOW = 0.02
"""Round trips of so many seconds make a new version by themselves."""


_ENVELOPE = 1024
"""Bytes of a page beside its connections."""


class _Shown:
    """The JSON of one link, as it was last written."""

    __slots__ = ("figures", "identity", "info", "text")

    def __init__(self, info: AgentInfo, identity: str) -> None:
        self.info = info
        self.identity = identity
        self.figures: dict[str, Any] = {}
        self.text = ""


class Directory:
    """The list, and what makes a new version of it."""

    def __init__(self, env: Env, links: Links, ledger: Ledger) -> None:
        self._env = env
        self._links = links
        self._ledger = ledger
        self._version = env.shell.raise_version()
        self._outdated = True
        """Whether the version was raised since the list was made."""
        self._renewal: Timer | None = None
        """Raises the version, because figures have changed, once those in the list are old."""
        self._number = 0
        self._text = b""
        self._versions: dict[str, bytes] = {}
        """The last two versions, by etag."""
        self._packed: dict[bool, bytes] = {}
        """The answers of the current version, by whether the caller has the list already."""
        self._etag = ""
        self._made = float("-inf")
        self._shown: dict[str, _Shown] = {}
        self._order: list[tuple[float, str]] = []
        """When each of the links was made, and its connection, as the list shows them."""
        links.on_change = self._outdate
        ledger.on_change = self.figures_changed

    def figures_changed(self) -> None:
        """Note that the list shows an old load, latency or number of jobs."""
        if self._outdated or self._renewal is not None:
            return
        due = self._made + _FIGURES_AGE
        if self._env.now >= due:
            self._outdate()
        else:
            self._renewal = self._env.timers.at(due, lambda _now: self._outdate())

    def _outdate(self) -> None:
        """Have the next call make a new list. Called before anybody is told of what has changed."""
        if self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None
        if not self._outdated:
            self._outdated = True
            self._packed = {}
            self._version = self._env.shell.raise_version()

    def latency_measured(self, seconds: float | None) -> None:
        """Note a measured round trip. A short one is shown with the next version."""
        if seconds is not None and seconds >= _SLOW:
            self.figures_changed()

    def load_reported(self, link: Link, body: dict[str, Any]) -> None:
        """Take the figures of an agent's `load` event; values that are no figures are ignored."""
        load, running = body.get("load"), body.get("running")
        before = (link.load, link.running, link.used)
        if isinstance(load, (int, float)) and 0 <= load < inf:
            link.load = round(float(load), 2)
        if isinstance(running, int):
            link.running = running
        link.placed, link.full, link.used = 0, False, read_amounts(body.get("used"))
        if before != (link.load, link.running, link.used):
            self.figures_changed()
        if isinstance(body.get("draining"), bool):
            self.drained(link, body["draining"])

    def pool_reported(self, link: Link, body: dict[str, Any]) -> None:
        """Take the figures of an agent's `pool` event.

        Raises:
            ProtocolError: they are malformed.
        """
        link.warm.figures = read_figures(body)
        self.figures_changed()

    def routers_reported(self, link: Link, routers: list[dict[str, Any]]) -> None:
        """Note to which routers an agent links."""
        if link.routers != routers:
            link.routers = routers
            self.figures_changed()

    def drained(self, link: Link, on: bool) -> None:
        """Note whether an agent refuses new jobs."""
        if link.draining != on:
            link.draining = on
            self._outdate()
            self._ledger.agent_changed(link, "draining" if on else "resumed")

    def connections(self, args: dict[str, Any], now: float) -> bytes:
        """The packed answer: ``{connections, etag, version}``, the first as the JSON that clients get.

        To a caller who has that already (`etag`): ``{unchanged: true, etag, version}``. A long list comes in pieces:
        then ``next`` is there, where the next one begins; ask for it with ``{of: etag, from: next}``. The last two
        versions are kept for that; when `of` is none of them, the answer is the beginning of the newest.
        """
        start, text = args.get("from"), self._versions.get(str(args.get("of")))
        if text is not None and isinstance(start, int) and 0 <= start < len(text):
            return _piece(text, start, {"etag": str(args["of"])})
        self._renew(now)
        known = args.get("etag") == self._etag
        packed = self._packed.get(known)
        if packed is None:
            told = {"etag": self._etag, "version": self._version}
            packed = pack_body({"unchanged": True, **told}) if known else _piece(self._text, 0, told)
            self._packed[known] = packed
        return packed

    def page(self, args: dict[str, Any], now: float) -> bytes:
        """The packed answer for a part of the list: ``{connections, etag, version, next}``.

        Args:
            args: ``limit``, the number of connections; ``after``, the `since` and the uid of the last one of the page
                before, or None.

        Returns:
            ``connections`` as JSON without brackets; ``next`` is the `after` of the next page, None for the last one.
        """
        self._renew(now)
        after = args.get("after")
        at = bisect(self._order, (after[0], after[1])) if after else 0
        parts: list[str] = []
        free = MAX_PAGE - _ENVELOPE
        for _, connection in self._order[at : at + args["limit"]]:
            text = self._shown[connection].text
            free -= len(text) + 1
            if free < 0 and parts:
                break
            parts.append(text)
        end = at + len(parts)
        following = list(self._order[end - 1]) if end < len(self._order) else None
        told = {"etag": self._etag, "version": self._version, "next": following}
        return pack_body({"connections": ",".join(parts).encode("ascii"), **told})

    def _renew(self, now: float) -> None:
        """Make the list of the current version."""
        if self._outdated:
            self._outdated = False
            self._make(now)

    def _show(self, link: Link) -> str:
        """The JSON of a link. The part that stays is written once, the figures only when they change."""
        known = self._shown.get(link.connection)
        if known is None or known.info is not link.info:
            known = self._shown[link.connection] = _Shown(link.info, _json(connection_identity(link)))
        figures = connection_figures(link, self._ledger.table.running(link.connection))
        if figures != known.figures:
            known.figures = figures
            known.text = f"{known.identity[:-1]},{_json(figures)[1:]}"
        return known.text

    def _make(self, now: float) -> None:
        self._made = now
        links = sorted(self._links, key=lambda link: (link.since, link.connection))
        shown = [self._show(link) for link in links]
        self._shown = {link.connection: self._shown[link.connection] for link in links}
        self._order = [(link.since, link.connection) for link in links]
        text = f'{{"connections":[{",".join(shown)}]}}'.encode("ascii")
        if text == self._text:
            return
        self._number += 1
        self._text, self._etag = text, f"{self._env.incarnation[:12]}-{self._number}"
        self._versions = dict([*list(self._versions.items())[-1:], (self._etag, text)])


def _piece(text: bytes, start: int, told: dict[str, Any]) -> bytes:
    end = start + MAX_PAGE
    following = {"next": end} if end < len(text) else {}
    return pack_body({"connections": text[start:end], **told, **following})


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
