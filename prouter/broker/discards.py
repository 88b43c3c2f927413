"""Removal of jobs that agents have and the router does not want: their creation failed, or they were removed here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from prouter.broker.base.env import Env
from prouter.broker.creations.keys import Keys
from prouter.broker.links.forward import Forwarder
from prouter.broker.links.link import Link
from prouter.broker.links.links import Links
from prouter.errors import NotFound, PRouterError

__all__ = ["Discards"]

log = logging.getLogger("prouter.broker")

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
"""Seconds after which an agent that could not remove a job is asked again; doubled with each answer."""


class Discards:
    """Has agents remove jobs, and asks again until each has, for as long as the agent is linked.

    Args:
        wanted: called with the link and the reply to ``job.usage`` for a job that another router has created for the
            same key. It stays, and this router has it as well.
    """

    def __init__(
        self,
        env: Env,
        links: Links,
        forwarder: Forwarder,
        keys: Keys,
        wanted: Callable[[Link, str, dict[str, Any], float], None],
    ) -> None:
        self._env = env
        self._links = links
        self._forwarder = forwarder
        self._keys = keys
        self._wanted = wanted
        self._under_way: set[tuple[str, str]] = set()
        """Connections and uids of jobs of which agents were asked, or will be asked again."""

    def discard(self, link: Link, uid: str, now: float, unwanted: Sequence[str] = ()) -> None:
        """Have the agent remove a job. Once, however often it tells of the job.

        Args:
            unwanted: uids under which it is unwanted: its own, or the one instead of which it was given.
        """
        if (link.connection, uid) not in self._under_way:
            self._under_way.add((link.connection, uid))
            self._ask(link, uid, tuple(unwanted), _FIRST_PAUSE, now)

    def _ask(self, link: Link, uid: str, unwanted: tuple[str, ...], pause: float, now: float) -> None:
        if self._links.get(link.connection) is not link:
            self._under_way.discard((link.connection, uid))
            return
        by = {"unwanted_by": self._env.settings.uid} if unwanted else {}
        done = partial(self._answered, link, uid, unwanted, pause)
        self._forwarder.call(link, "job.remove", {"uid": uid, **by}, done, now)

    def _answered(
        self,
        link: Link,
        uid: str,
        unwanted: tuple[str, ...],
        pause: float,
        value: dict[str, Any],
        error: PRouterError | None,
        now: float,
    ) -> None:
        if error is not None and error.passes:
            log.info("event=discard_failed job=%s link=%s error=%r", uid, link.connection, error.logged)
            again = partial(self._ask, link, uid, unwanted, min(pause * 2, _LONGEST_PAUSE))
            self._env.timers.at(now + pause, again)
            return
        self._under_way.discard((link.connection, uid))
        if error is not None and error.code == "job_wanted":
            for one in unwanted:
                self._keys.want(one)
            self._forwarder.call(link, "job.usage", {"uid": uid}, partial(self._heard, link, uid), now)
        elif error is not None and not isinstance(error, NotFound):
            log.warning("event=discard_refused job=%s link=%s error=%r", uid, link.connection, error.logged)

    def _heard(self, link: Link, uid: str, value: dict[str, Any], error: PRouterError | None, now: float) -> None:
        if error is None:
            self._wanted(link, uid, value, now)
