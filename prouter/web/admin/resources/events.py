"""Changes of jobs and agents as server-sent events."""

from __future__ import annotations

import falcon

from prouter.errors import InvalidRequest
from prouter.web.admin.feeds import sse
from prouter.web.admin.feeds.event_feed import EventFeed
from prouter.web.admin.requests.context import ApiRequest, principal_of

__all__ = ["Events"]


class Events:
    """The resource ``/events``."""

    def __init__(self, feed: EventFeed) -> None:
        self._feed = feed

    def on_get(self, req: ApiRequest, resp: falcon.Response) -> None:
        """Send every change from now on, or after the event of ``Last-Event-ID``."""
        after = req.get_header("Last-Event-ID") or req.get_param("after")
        if after is not None and not (after.isascii() and after.isdigit() and len(after) <= 18):
            raise InvalidRequest("Invalid request: Last-Event-ID (or ?after=) must be the id of an event, a number")
        follower = self._feed.follow(None if after is None else int(after), principal_of(req))
        resp.set_header("X-PRouter-Last-Event-ID", str(follower.position))
        sse.start(req, resp, follower)
