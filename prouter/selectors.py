"""Which agent gets a new job: the kinds of selectors in request bodies, and whether the job may wait for an agent."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from prouter.addresses import split_address
from prouter.bodies import Body, Duration, null_is
from prouter.requirements import check_require
from prouter.resources import check_amounts

__all__ = [
    "AgentByAddress",
    "AgentByProperties",
    "AgentBySelect",
    "AgentByUid",
    "AgentChoice",
    "Queue",
    "check_queue",
    "few_properties",
]

_MAX_UIDS = 10_000
_MAX_UID = 1024
"""Characters of an agent's uid, at most."""
_MAX_TOKEN = 4096
_MAX_ADDRESS = 512
_MAX_PROPERTIES = 16 * 1024
"""Bytes of the properties that an agent must have, as JSON, at most."""


def few_properties(properties: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(json.dumps(properties))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"must be JSON: {error}") from None
    if size > _MAX_PROPERTIES:
        raise ValueError(f"must have at most {_MAX_PROPERTIES} bytes as JSON")
    return properties


def _requirements(require: dict[str, Any]) -> dict[str, Any]:
    return check_require(few_properties(require))


def _amounts(amounts: dict[str, int | float]) -> dict[str, int | float]:
    check_amounts(amounts)
    return {name: amount for name, amount in amounts.items() if amount}


def _address(text: str) -> str:
    split_address(text)
    return text


Uid = Annotated[str, Field(max_length=_MAX_UID)]
Address = Annotated[str, Field(max_length=_MAX_ADDRESS), AfterValidator(_address)]
_Properties = Annotated[dict[str, Any], AfterValidator(few_properties)]
Properties = Annotated[_Properties, BeforeValidator(null_is(dict), json_schema_input_type=_Properties | None)]
_Require = Annotated[dict[str, Any], AfterValidator(_requirements)]
Require = Annotated[_Require, BeforeValidator(null_is(dict), json_schema_input_type=_Require | None)]
_Resources = Annotated[dict[str, int | float], AfterValidator(_amounts)]
Resources = Annotated[_Resources, BeforeValidator(null_is(dict), json_schema_input_type=_Resources | None)]


class AgentByUid(Body):
    """The connected agent with this uid."""

    type: Literal["uid"]
    uid: Uid = Field(description="Uid of a connected agent.")


class AgentByAddress(Body):
    """The agent that listens at this address; the router dials it, unless it is linked already."""

    type: Literal["address"]
    address: Address = Field(description="Where the agent listens, 'host:port'.", examples=["10.0.0.7:5000"])
    token: str = Field(max_length=_MAX_TOKEN, description="Token the agent accepts.")


class AgentBySelect(Body):
    """The least loaded of the agents with these uids that has a free slot."""

    type: Literal["select"]
    uids: list[Uid] = Field(min_length=1, max_length=_MAX_UIDS, description="Uids to choose from.")


class AgentByProperties(Body):
    """An agent that has these properties and resources and a free slot; the least loaded one, unless told otherwise."""

    type: Literal["any"]
    properties: Properties = Field(
        default_factory=dict, description="Every one of these must equal the agent's property of that name."
    )
    require: Require = Field(
        default_factory=dict,
        description="What the agent's properties must fulfil: a value that is equal, or a map from operators (>=, <=, "
        ">, <, in) to operands.",
        examples=[{"gpus": {">=": 2}, "zone": {"in": ["a", "b"]}, "cuda": True}],
    )
    resources: Resources = Field(
        default_factory=dict,
        description="What the job takes of the agent's `jobs.resources` until it has ended: `cpus`, `memory` (bytes), "
        "`gpus`, or any other name.",
        examples=[{"cpus": 4, "memory": 8_000_000_000, "matlab": 1}],
    )
    strategy: Literal["spread", "pack"] | None = Field(
        default=None,
        description="Which of several agents: `spread` takes the emptiest, `pack` the fullest one that still has "
        "space; by default the least loaded.",
    )


AgentChoice = Annotated[AgentByUid | AgentByAddress | AgentBySelect | AgentByProperties, Field(discriminator="type")]


class Queue(Body):
    """That the job waits in the router's queue if no agent has space for it."""

    timeout: Duration = Field(description="Seconds that it waits; after that it ends with the reason `queue_timeout`.")


def check_queue(agent: AgentChoice, queue: Queue | None) -> None:
    """Refuse to queue a job for an agent that would have to be dialled.

    Raises:
        ValueError: that is asked for.
    """
    if queue is not None and agent.type == "address":
        raise ValueError("queue: a job for an agent that the router has to dial cannot wait in the queue")
