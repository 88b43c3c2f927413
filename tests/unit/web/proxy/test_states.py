"""The tables of a proxied exchange's states: complete, without dead ends, and enforced."""

from __future__ import annotations

from enum import IntEnum
from types import SimpleNamespace
from typing import Any, cast

import pytest

from prouter.web.proxy.addresses.forwarded import Forwarded, Origin
from prouter.web.proxy.addresses.roots import Asked
from prouter.web.proxy.exchange import ProxyExchange
from prouter.web.proxy.messages.heads import parse_request
from prouter.web.proxy.sender import RequestSender
from prouter.web.proxy.states import (
    BODY,
    DONE,
    HELD,
    NEXT_REQUEST,
    NEXT_RESPONSE,
    ROUTING,
    TUNNEL,
    RequestState,
    ResponseState,
)

HEAD = parse_request(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
FORWARDED = Forwarded(HEAD, Origin("unix", 0, False))


def reachable(table: dict[Any, frozenset[Any]], start: IntEnum) -> set[Any]:
    found, left = {start}, [start]
    while left:
        new = table[left.pop()] - found
        found |= new
        left += new
    return found


def test_every_state_is_in_its_table_and_can_be_reached() -> None:
    assert set(NEXT_REQUEST) == set(RequestState) == reachable(NEXT_REQUEST, HELD)
    assert set(NEXT_RESPONSE) == set(ResponseState) == reachable(NEXT_RESPONSE, ROUTING)


def test_an_exchange_that_is_over_stays_so_and_every_other_one_can_end() -> None:
    for state, following in NEXT_RESPONSE.items():
        assert (state >= DONE) == (not following)
        assert state >= DONE or any(end >= DONE for end in reachable(NEXT_RESPONSE, state))


def test_a_response_that_has_begun_is_never_replaced_by_an_error() -> None:
    assert reachable(NEXT_RESPONSE, BODY) == {BODY, ResponseState.DONE, ResponseState.ABORTED}


@pytest.mark.parametrize("now", ResponseState)
def test_a_change_that_the_table_of_responses_does_not_allow_is_refused(now: ResponseState) -> None:
    for wanted in ResponseState:
        exchange = ProxyExchange(cast(Any, SimpleNamespace()), cast(Any, None), FORWARDED, Asked("", "", b"/x", True))
        exchange.state = now
        if wanted in NEXT_RESPONSE[now]:
            exchange._change(wanted)
            assert exchange.state is wanted
        else:
            with pytest.raises(RuntimeError, match=f"ResponseState: {wanted.name} may not follow {now.name}"):
                exchange._change(wanted)
            assert exchange.state is now


@pytest.mark.parametrize("now", RequestState)
def test_a_change_that_the_table_of_requests_does_not_allow_is_refused(now: RequestState) -> None:
    for wanted in set(RequestState) - {now}:
        sender = RequestSender(cast(Any, None), HEAD)
        sender.state = now
        if wanted in NEXT_REQUEST[now]:
            sender._change(wanted)
            assert sender.state is wanted
        else:
            with pytest.raises(RuntimeError, match=f"RequestState: {wanted.name} may not follow {now.name}"):
                sender._change(wanted)
            assert sender.state is now


def test_only_a_request_that_is_not_sent_again_becomes_a_tunnel() -> None:
    assert [state for state, following in NEXT_RESPONSE.items() if TUNNEL in following] == [ResponseState.COMMITTED]
