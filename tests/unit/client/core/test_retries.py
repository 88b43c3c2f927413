"""Requests are sent again where that is safe and may help, for a limited time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prouter.client.core import creating, files, jobs, router, sharing
from prouter.client.core.errors import (
    AgentUnavailable,
    ConnectionFailed,
    NoAgent,
    NotFound,
    Overloaded,
    RouterError,
    StartFailed,
    TimedOut,
)
from prouter.client.core.flow import Lost, Request
from prouter.client.core.retries import ACCEPTED, LONGEST_PAUSE, call
from tests.support.flow_player import Answer, FlowPlayer, context

JOB = {"uid": "j", "name": "n", "path": "/jobs/c/j", "state": "NEW"}
CUT = Lost("reset")
REFUSED = Lost("refused", sent=False)


def ok(body: Any = None, status: int = 200) -> Answer:
    return Answer(status, {}, (json.dumps(JOB if body is None else body).encode(),))


def problem(status: int, code: str, *, made: str | None = None, **headers: str) -> Answer:
    body = json.dumps({"status": status, "code": code, "detail": "because", "request_id": "r1", "made": made}).encode()
    return Answer(status, {"x-prouter-error": code, **headers}, (body,))


def scripted(*answers: Answer | Lost) -> FlowPlayer:
    """A router that gives these answers, the last one again and again."""
    left: Iterator[Answer | Lost] = iter(answers)
    return FlowPlayer(lambda _request: next(left, answers[-1]))


def test_a_create_that_is_cut_is_repeated_with_its_key() -> None:
    player = scripted(CUT, REFUSED, problem(503, "draining", **{"retry-after": "1"}), ok())
    made = player.run(creating.Creation(context(), "n").carry_out())
    assert made is not None
    assert made.uid == "j"
    assert [request.headers["Idempotency-Key"] for request in player.requests] == ["key-0"] * 4
    assert len({request.body for request in player.requests}) == 1
    assert player.pauses[2] >= 1


def test_each_call_has_a_key_of_its_own() -> None:
    shared = context()
    player = scripted(ok())
    player.run(creating.Creation(shared).carry_out())
    player.run(creating.Creation(shared).carry_out())
    player.run(jobs.start(shared, "/jobs/c/j", {"args": ["x"]}))
    assert len({request.headers["Idempotency-Key"] for request in player.requests}) == 3
    shared_player = scripted(ok({"id": "s", "url": "http://x"}, 201))
    shared_player.run(sharing.share(shared, "/jobs/c/j", expires=None, name=None, methods="all"))
    assert shared_player.requests[0].headers["Idempotency-Key"] == "key-3"


def test_a_signal_that_may_have_been_sent_is_not_sent_again() -> None:
    player = scripted(REFUSED, CUT, ok())
    with pytest.raises(ConnectionFailed, match="may have been carried out") as failed:
        player.run(jobs.send_signal(context(), "/jobs/c/j", "USR1"))
    assert failed.value.sent
    assert len(player.requests) == 2
    unsure = scripted(problem(503, "agent_unavailable", **{"retry-after": "1"}))
    with pytest.raises(AgentUnavailable):
        unsure.run(jobs.send_signal(context(), "/jobs/c/j", "USR1"))
    assert len(unsure.requests) == 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (problem(502, "start_failed"), StartFailed),
        (problem(503, "overloaded"), Overloaded),
        (problem(429, "limit_reached"), Overloaded),
        (problem(404, "not_found"), NotFound),
        (problem(429, "limit_reached", **{"retry-after": "3600"}), Overloaded),
        (Answer(302, {"location": "https://login"}), RouterError),
        (Answer(500, {}, (b"oops",)), RouterError),
    ],
)
def test_what_does_not_pass_is_raised_at_once(answer: Answer, kind: type[RouterError]) -> None:
    player = scripted(answer)
    with pytest.raises(kind) as raised:
        player.run(call(context(), Request("GET", "/x")))
    assert raised.value.status == answer.status
    assert len(player.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        Answer(502, {}, (b"<html>nginx</html>",)),
        Answer(504, {}),
        problem(503, "draining", **{"retry-after": "1"}),
        problem(504, "agent_timeout", **{"retry-after": "1"}),
        problem(429, "limit_reached", **{"retry-after": "1"}),
    ],
)
def test_what_may_pass_is_tried_again_until_the_time_is_up(answer: Answer) -> None:
    player = scripted(answer, answer, ok())
    assert player.run(call(context(), Request("GET", "/x"))) is not None
    player = scripted(answer)
    with pytest.raises(RouterError):
        player.run(call(context(retry_for=20), Request("GET", "/x")))
    assert 10 < player.moment <= 20


def test_a_router_that_never_answered_is_given_up_early() -> None:
    player = scripted(REFUSED)
    with pytest.raises(ConnectionFailed, match="PROUTER_URL"):
        player.run(router.who_am_i(context(reached=False, first_contact=2.0)))
    assert player.moment <= 2.0
    accepting = scripted(REFUSED, CUT)
    with pytest.raises(ConnectionFailed, match="PROUTER_URL"):
        accepting.run(router.who_am_i(context(reached=False, first_contact=2.0)))
    assert 2 < accepting.moment <= ACCEPTED
    hopeless = scripted(Lost("CERTIFICATE_VERIFY_FAILED", hopeless=True))
    with pytest.raises(ConnectionFailed, match="CERTIFICATE"):
        hopeless.run(router.who_am_i(context()))
    assert len(hopeless.requests) == 1


def test_what_may_have_been_made_is_asked_for_again_though_each_attempt_takes_long() -> None:
    left: Iterator[Answer | Lost] = iter([Lost("no byte came in time")] * 3 + [ok()])

    def silent(_request: Request) -> Answer | Lost:
        player.moment += 30
        return next(left)

    player = FlowPlayer(silent)
    assert player.run(creating.Creation(context(reached=False)).carry_out()) is not None
    with pytest.raises(ConnectionFailed, match="may have been carried out"):
        scripted(CUT).run(creating.Creation(context(reached=False)).carry_out())


@settings(deadline=None, max_examples=30)
@given(st.floats(0.05, 1), st.floats(1, 500))
def test_pauses_are_bounded_and_time_is_kept(chance: float, patience: float) -> None:
    player = scripted(CUT)
    with pytest.raises(ConnectionFailed):
        player.run(call(context(random=lambda: chance, retry_for=patience), Request("GET", "/x")))
    assert max(player.pauses) <= LONGEST_PAUSE
    assert player.moment <= patience + 1e-6


def test_removing_what_a_lost_attempt_removed_is_a_success() -> None:
    player = scripted(CUT, problem(404, "not_found"))
    assert player.run(jobs.remove(context(), "/jobs/c/j")) is None
    with pytest.raises(NotFound):
        scripted(REFUSED, problem(404, "not_found")).run(jobs.remove(context(), "/jobs/c/j"))


def test_a_token_whose_answer_was_lost_is_revoked_and_made_again() -> None:
    exists = problem(409, "token_exists", made="ab12")
    player = scripted(CUT, exists, Answer(204), ok({"id": "cd34", "token": "prt_x", "role": "user"}, 201))
    token = player.run(router.create_token(context(), "ci", "user", None))
    assert token is not None
    assert (token.id, token.token) == ("cd34", "prt_x")
    assert [(one.method, one.path) for one in player.requests] == [
        ("POST", "/tokens"), ("POST", "/tokens"), ("DELETE", "/tokens/ab12"), ("POST", "/tokens"),
    ]  # fmt: skip
    assert player.requests[0].headers["Idempotency-Key"] != player.requests[3].headers["Idempotency-Key"]
    assert "prt_x" not in repr(token)


def test_a_wait_asks_again_and_endures_losses() -> None:
    running, ended = {**JOB, "state": "RUNNING"}, {**JOB, "state": "FINISHED", "exit_code": 3, "reason": "exited"}
    player = scripted(ok(running, 202), CUT, *[REFUSED] * 100, ok(running, 202), ok(ended))
    outcome = player.run(jobs.wait(context(retry_for=1), "/jobs/c/j"))
    assert outcome is not None
    assert (outcome.exit_code, outcome.ok, outcome.ended) == (3, False, True)
    assert player.moment > 60


def test_a_wait_ends_in_time_even_if_the_router_is_gone() -> None:
    player = scripted(ok({**JOB, "state": "RUNNING"}, 202), REFUSED)
    with pytest.raises(TimedOut, match="not ended within 30 s") as failed:
        player.run(jobs.wait(context(), "/jobs/c/j", 30))
    assert isinstance(failed.value, TimeoutError)
    assert player.moment <= 30


def test_a_wait_with_a_deadline_does_not_listen_much_longer() -> None:
    player = scripted(ok(status=202))
    with pytest.raises(TimedOut):
        player.run(jobs.wait(context(), "/jobs/c/j", 0.0))
    assert player.requests[0].silence == 5


def test_errors_of_placement_are_told_apart() -> None:
    for answer in (problem(404, "not_found"), problem(503, "agent_draining"), problem(429, "limit_reached")):
        with pytest.raises(NoAgent) as raised:
            scripted(answer).run(creating.Creation(context()).carry_out())
        assert isinstance(raised.value, NotFound) == (answer.status == 404)
    with pytest.raises(NotFound) as other:
        scripted(problem(404, "not_found")).run(jobs.info(context(), "/jobs/c/j"))
    assert not isinstance(other.value, NoAgent)
    assert (other.value.code, other.value.request_id) == ("not_found", "r1")


def test_an_answer_that_is_not_a_routers_says_so() -> None:
    for body in (b"<html>", b"[]"):
        with pytest.raises(RouterError, match="check the URL"):
            scripted(Answer(200, {}, (body,))).run(router.router_info(context()))
    with pytest.raises(RouterError, match="check the URL"):
        scripted(ok({"message": "hello"})).run(creating.Creation(context()).carry_out())


def test_a_file_that_must_be_new_is_not_sent_twice() -> None:
    with pytest.raises(ConnectionFailed, match="may have been carried out"):
        scripted(CUT, problem(412, "precondition_failed")).run(
            files.write_file(context(), "/jobs/c/j", "f", b"", new=True)
        )


def test_pages_are_read_to_the_last() -> None:
    pages = iter([{"jobs": [JOB, JOB], "next": "a b"}, {"jobs": [JOB], "next": None}])
    player = FlowPlayer(lambda _request: ok(next(pages)))
    player.run(jobs.list_jobs(context(), state=["NEW", "RUNNING"], agent=None, name="ü&", owner=None))
    assert len(player.given) == 3
    assert player.requests[0].path == "/jobs?state=NEW&state=RUNNING&name=%C3%BC%26&limit=250"
    assert player.requests[1].path.endswith("&cursor=a+b")


def test_a_job_is_found_by_path_url_uid_and_the_beginning_of_a_uid() -> None:
    known = {"jobs": [{**JOB, "uid": uid, "path": f"/jobs/c/{uid}"} for uid in ("abc1", "abd2", "abd23")]}
    player = FlowPlayer(lambda request: ok(known) if request.path.startswith("/jobs?") else ok())
    for text in ("/jobs/c/j", "https://h/jobs/c/j/http/page?x", "/jobs/c/j/"):
        player.run(jobs.find(context(), text))
        assert player.requests[-1].path == "/jobs/c/j/info"
    assert [getattr(player.run(jobs.find(context(), uid)), "uid", None) for uid in ("abc", "abd2")] == ["abc1", "abd2"]
    with pytest.raises(ValueError, match="3 jobs begin with 'ab'"):
        player.run(jobs.find(context(), "ab"))
    with pytest.raises(NotFound):
        player.run(jobs.find(context(), "x"))
    with pytest.raises(ValueError, match="neither"):
        player.run(jobs.find(context(), ""))


def test_a_start_without_a_server_expects_no_port() -> None:
    assert creating.start_body(["x"])["port_expected_count"] == 0
    assert creating.start_body(["x"], expose="assign")["expose"] == {"port": "assign"}
    assert creating.start_body(["x"], preset="dash", expose={"path": "keep"})["expose"] == {
        "path": "keep",
        "preset": "dash",
    }
    with pytest.raises(TypeError, match="a list"):
        creating.start_body("x y")
    with pytest.raises(ValueError, match="give args"):
        creating.start_body([])


def test_a_template_says_all_but_the_time_limit() -> None:
    assert creating.start_body([], template="lab") == {"template": "lab"}
    assert creating.start_body([], template="lab", limits={"timeout": 9}) == {
        "template": "lab",
        "limits": {"timeout": 9},
    }
    for more in ({"env": {"A": "b"}}, {"preset": "dash"}, {"options": {"home": "sandbox"}}):
        with pytest.raises(ValueError, match="give it alone"):
            creating.start_body([], template="lab", **more)
    with pytest.raises(ValueError, match="either agent or where"):
        creating.choice("a", where={"gpu": True})
