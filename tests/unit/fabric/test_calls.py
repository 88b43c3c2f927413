"""Calls are carried out once, however often they are sent and whatever is lost."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.errors import AgentUnavailable, LimitReached, NotFound, ProtocolError
from prouter.fabric.calls import Caller, Request, Responder, event_frame, read_event
from prouter.fabric.frames import CALL, EVENT, REPLY, Frame, pack_body


@given(st.lists(st.sampled_from(["call", "lose", "there", "answer", "back"]), max_size=60))
def test_every_call_is_carried_out_once_and_answered(steps: list[str]) -> None:
    caller, responder = Caller(), Responder()
    asked: list[str] = []
    there: list[Frame] = []
    back: list[Frame] = []
    todo: list[Request] = []
    carried_out: list[str] = []
    answers: dict[str, Any] = {}

    def step(name: str) -> None:
        if name == "call":
            call_id, frame = caller.call("op", {"n": len(asked)})
            asked.append(call_id)
            there.append(frame)
        elif name == "lose":
            there[:] = caller.frames(asked)
            back.clear()
        elif name == "there" and there:
            outcome = responder.receive(there.pop(0))
            if isinstance(outcome, Request):
                todo.append(outcome)
            elif outcome is not None:
                back.append(outcome)
        elif name == "answer" and todo:
            request = todo.pop(0)
            carried_out.append(request.call_id)
            back.append(responder.reply(request.call_id, {"n": request.args["n"]}))
        elif name == "back" and back:
            result = caller.receive(back.pop(0))
            if result is not None:
                assert result.call_id not in answers
                answers[result.call_id] = result.value["n"]

    for name in steps:
        step(name)
    step("lose")
    while there or back or todo:
        for name in ("there", "answer", "back"):
            step(name)
    assert answers == {call_id: number for number, call_id in enumerate(asked)}
    assert sorted(carried_out) == sorted(asked)
    assert caller.pending == responder.running == 0


def test_errors_cross_the_fabric_with_all_their_fields() -> None:
    caller, responder = Caller(), Responder()
    _, frame = caller.call("op", {})
    request = responder.receive(frame)
    assert isinstance(request, Request)
    sent = LimitReached("no slot", job="j", state="NEW", retry_after=3, code="full")
    result = caller.receive(responder.reply(request.call_id, error=sent))
    assert result is not None
    assert isinstance(result.error, LimitReached)
    assert result.error.to_wire() == sent.to_wire()


def test_an_error_of_an_unknown_type_is_still_an_error() -> None:
    caller = Caller()
    call_id, _ = caller.call("op", {})
    result = caller.receive(Frame(REPLY, payload=pack_body({"id": call_id, "error": {"type": "New", "detail": "x"}})))
    assert result is not None
    assert result.error is not None
    assert result.error.detail == "x"


def test_a_call_that_was_given_up_gets_no_answer() -> None:
    caller, responder = Caller(), Responder()
    call_id, frame = caller.call("op", {}, "my-id")
    assert call_id == "my-id"
    request = responder.receive(frame)
    assert isinstance(request, Request)
    caller.forget(call_id)
    assert caller.receive(responder.reply(call_id)) is None
    assert caller.frames([call_id]) == []


def test_answers_that_only_read_are_not_remembered() -> None:
    responder = Responder()
    _, frame = Caller().call("op", {})
    request = responder.receive(frame)
    assert isinstance(request, Request)
    responder.reply(request.call_id, {"x": 1}, keep=False)
    assert isinstance(responder.receive(frame), Request)


def test_an_encoded_reply_is_like_any_other() -> None:
    caller, responder = Caller(), Responder()
    call_id, frame = caller.call("op", {}, "x" * 300)
    assert isinstance(responder.receive(frame), Request)
    result = caller.receive(responder.reply_packed(call_id, pack_body({"list": [1, 2]})))
    assert result is not None
    assert (result.call_id, result.value, result.error) == (call_id, {"list": [1, 2]}, None)
    assert responder.running == 0


def test_only_so_many_bytes_of_answers_are_remembered() -> None:
    caller, responder = Caller(), Responder(remember_bytes=3000)
    asked = []
    for _ in range(5):
        call_id, frame = caller.call("op", {})
        assert isinstance(responder.receive(frame), Request)
        responder.reply(call_id, {"much": "x" * 1000})
        asked.append(frame)
    assert [isinstance(responder.receive(frame), Frame) for frame in asked] == [False, False, False, True, True]
    call_id, frame = caller.call("op", {})
    assert isinstance(responder.receive(frame), Request)
    responder.reply(call_id, {"much": "x" * 9000})
    assert isinstance(responder.receive(frame), Frame)


def test_only_so_many_answers_are_remembered() -> None:
    caller, responder = Caller(), Responder(remember=2)
    frames = []
    for _ in range(3):
        call_id, frame = caller.call("op", {})
        frames.append(frame)
        responder.receive(frame)
        responder.reply(call_id)
    assert isinstance(responder.receive(frames[0]), Request)
    assert isinstance(responder.receive(frames[2]), Frame)


def test_a_call_nobody_waits_for_any_more_may_be_asked_again() -> None:
    caller, responder = Caller(), Responder()
    call_id, frame = caller.call("op", {})
    responder.receive(frame)
    assert responder.receive(frame) is None
    responder.forget(call_id)
    assert isinstance(responder.receive(frame), Request)


@pytest.mark.parametrize("body", [{}, {"id": 1}, {"id": "x"}, {"id": "x", "op": 3, "args": {}}, {"id": "x", "op": "y"}])
def test_malformed_calls_and_replies_are_protocol_errors(body: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        Responder().receive(Frame(CALL, payload=pack_body(body)))
    if not isinstance(body.get("id"), str):
        with pytest.raises(ProtocolError):
            Caller().receive(Frame(REPLY, payload=pack_body(body)))


def test_events_are_a_name_and_a_body() -> None:
    assert read_event(event_frame("job", {"uid": "x"})) == ("job", {"uid": "x"})
    for body in ({}, {"event": 5, "body": {}}, {"event": "x", "body": []}):
        with pytest.raises(ProtocolError):
            read_event(Frame(EVENT, payload=pack_body(body)))


def test_error_classes_are_found_by_name() -> None:
    for error in (NotFound("x"), AgentUnavailable("y", retry_after=1)):
        caller, responder = Caller(), Responder()
        call_id, frame = caller.call("op", {})
        responder.receive(frame)
        result = caller.receive(responder.reply(call_id, error=error))
        assert result is not None
        assert type(result.error) is type(error)
