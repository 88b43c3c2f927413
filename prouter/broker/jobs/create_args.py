"""What an agent is told with the call that has it create a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prouter.broker.jobs.replies import BY_REVISION
from prouter.broker.links.link import Link
from prouter.resources import Amounts

__all__ = ["create_args"]


def create_args(
    uid: str, name: str, link: Link, router: Mapping[str, str], resources: Amounts, optional: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of ``job.create``.

    Args:
        router: its uid and name, as agents know it.
        optional: ``owner``, ``key``, ``digest``, ``template`` and ``client``, ``will_start`` (`JobRecord`);
            those that are None are left out.
    """
    given = {name: value for name, value in optional.items() if value is not None}
    return {
        "uid": uid,
        "connection": link.connection,
        "name": name,
        "router": dict(router),
        "resources": dict(resources),
        **given,
        **BY_REVISION,
    }
