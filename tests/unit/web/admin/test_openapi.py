"""The OpenAPI document describes every route, and only those that exist."""

from __future__ import annotations

import re
from typing import Any

from falcon.inspect import inspect_compiled_router, inspect_routes, register_router

from prouter.web.admin.app import create_app
from prouter.web.admin.middleware import Router
from prouter.web.admin.openapi import document
from tests.support.api_stand import StandInRouter

register_router(Router)(inspect_compiled_router)


def served() -> set[tuple[str, str]]:
    """Every (method, path) of the app."""
    router = StandInRouter()
    app = create_app(router, router.config, router.gate)  # type: ignore[arg-type]
    return {
        (method.method.lower(), route.path.replace("{rest:path}", "{rest}"))
        for route in inspect_routes(app)
        for method in route.methods
        if not method.internal
    }


def references(node: Any) -> set[str]:
    """Every ``$ref`` in the document."""
    if isinstance(node, dict):
        own = {node["$ref"]} if "$ref" in node else set()
        return own.union(*map(references, node.values()))
    return set().union(*map(references, node)) if isinstance(node, list) else set()


def test_every_route_is_described_and_every_description_is_served() -> None:
    described = {
        (method, path) for path, item in document()["paths"].items() for method in item if method != "parameters"
    }
    there = served()
    assert described <= there
    nouns = {path.removesuffix("/{rest}") for _method, path in there if path.endswith("/{rest}")}
    bodiless = {("head", path) for method, path in described if method == "get"}  # goes without saying
    missing = there - described - bodiless
    assert {(method, path) for method, path in missing if path.removesuffix("/{rest}") not in nouns} == set()


def test_every_reference_leads_somewhere() -> None:
    whole = document()
    schemas = whole["components"]["schemas"]
    for reference in references(whole):
        assert reference.removeprefix("#/components/schemas/") in schemas


def test_operation_ids_and_path_parameters_are_well_formed() -> None:
    ids = []
    for path, item in document()["paths"].items():
        fields = {parameter["name"] for parameter in item.get("parameters", [])}
        assert fields == set(re.findall(r"\{(\w+)\}", path))
        ids += [operation["operationId"] for method, operation in item.items() if method != "parameters"]
    assert len(ids) == len(set(ids))


def test_request_bodies_are_the_models_that_validate() -> None:
    schemas = document()["components"]["schemas"]
    assert schemas["StartRequest"]["additionalProperties"] is False
    assert set(schemas["StartRequest"]["required"]) == {"args", "env"}


def test_what_may_become_of_a_body_is_documented() -> None:
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            if "requestBody" in operation:
                assert {"408", "413", "415"} <= operation["responses"].keys(), (method, path)
