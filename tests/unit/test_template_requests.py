"""Templates, and the requests that name one."""

from __future__ import annotations

from typing import Any

import pytest

from prouter.config.pool import templates_of
from prouter.errors import InvalidRequest
from prouter.requests import CreateRequest, RunRequest, StartRequest, digest, validated
from prouter.template_requests import Template, TemplateRun, TemplateStart, run_model, start_model

LAB = {"args": ["jupyter", "lab"], "expose": {"preset": "jupyterlab"}, "limits": {"memory": 5, "timeout": 9}}


def test_a_template_makes_the_request_that_starts_a_job() -> None:
    template = validated(Template, {**LAB, "size": 3})
    assert template.size == 3
    assert template.start() == validated(StartRequest, {**LAB, "env": {}})
    limits = template.start(timeout=7).limits
    assert limits is not None
    assert (limits.memory, limits.timeout) == (5, 7)
    assert validated(Template, {"args": ["x"]}).size == 1


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"args": ["x"]}, "args: the template says this already"),
        ({"env": {"A": "1"}}, "env: the template says this already"),
        ({"resources": {"cpus": 1}}, "resources: the template says this already"),
        ({"limits": {"memory": 5}}, "limits.memory: no such key; known are timeout"),
        ({"more": 1}, "more: no such key"),
        ({"template": "a b"}, "template: String should match"),
        ({"template": "a\n"}, "template: String should match"),
    ],
)
@pytest.mark.parametrize("model", [TemplateStart, TemplateRun])
def test_a_request_with_a_template_says_nothing_else(
    model: type[TemplateStart], body: dict[str, Any], why: str
) -> None:
    name = {"name": "n"} if model is TemplateRun else {}
    with pytest.raises(InvalidRequest) as caught:
        validated(model, {**name, "template": "lab", **body})
    assert f"Invalid request: {why}" in caught.value.detail


def test_the_key_template_decides_which_request_it_is() -> None:
    assert start_model({"template": "lab"}) is TemplateStart
    assert run_model({"template": "lab", "args": ["x"]}) is TemplateRun
    others: list[Any] = [{"args": ["x"], "env": {}}, {"template": None, "args": ["x"]}, [], None, "text"]
    for body in others:
        assert (start_model(body), run_model(body)) == (StartRequest, RunRequest)


def test_a_run_is_a_create_and_a_start() -> None:
    run = validated(TemplateRun, {"name": "", "template": "lab", "agent": None, "limits": {"timeout": 5}})
    assert (run.create().template, run.create().agent.type) == ("lab", "any")
    assert (run.start(), run.start().timeout) == (TemplateStart(template="lab", limits=run.limits), 5)


def test_requests_without_a_template_keep_their_digest() -> None:
    assert (
        digest(validated(CreateRequest, {"name": "n", "agent": {"type": "any"}})) == "b3f03f66068031140f884c71d3a3cd90"
    )


@pytest.mark.parametrize(
    ("pool", "why"),
    [
        ({"a b": LAB}, "'a b': a template's name has"),
        ({1: LAB}, "1: a template's name has"),
        ({"lab": {"size": 1}}, "lab: args: Field required"),
        ({"lab": {**LAB, "size": -1}}, "lab: size: Input should be greater"),
        ({"lab": {**LAB, "expose": {"presett": "x"}}}, "lab: expose.presett: no such key; did you mean preset?"),
        ({"lab": ["jupyter"]}, "lab: Input should be an object"),
        ({str(number): LAB for number in range(65)}, "at most 64 templates"),
    ],
)
def test_a_malformed_pool_is_refused_with_the_reason(pool: dict[Any, Any], why: str) -> None:
    with pytest.raises(ValueError) as caught:
        templates_of(pool)
    assert str(caught.value).startswith(why)


def test_a_pool_is_read_once() -> None:
    pool = templates_of({"lab": LAB})
    assert templates_of(pool) == pool
