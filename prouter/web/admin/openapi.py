"""The OpenAPI 3.1 document, made from the table of operations and the models that validate requests."""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import Any

import falcon
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from prouter import __version__
from prouter.access.roles import Need
from prouter.web.admin import responses
from prouter.web.admin.operation import OneOf
from prouter.web.admin.operations import OPERATIONS, Operation, Parameter
from prouter.web.admin.requests.context import ApiRequest
from prouter.web.route_roles import NEEDS

__all__ = ["OpenApi", "document"]

_REF = "#/components/schemas/{model}"
_FIELD = re.compile(r"\{(\w+)\}")
_FIELD_TEXTS = {
    "connection": "Uid of the connection with the job's agent.",
    "job": "Uid of the job.",
    "name": "stdout or stderr.",
    "port": "A port's number, or `http` for the job's server.",
    "rest": "Path relative to the sandbox, percent-encoded except for slashes.",
    "share": "Id of a share link.",
    "token": "Id of an access token.",
}

_SCHEMES = {
    "token": {"type": "http", "scheme": "bearer", "description": "An access token, where the router asks for one."},
    "password": {"type": "http", "scheme": "basic", "description": "The token as password; any user name."},
}
_ROLES = {
    Need.NOTHING: "For everybody.",
    Need.OWNER: "For users with jobs of their own, and operators with all jobs.",
}


class OpenApi:
    """The resource ``/openapi.json``."""

    def __init__(self) -> None:
        self._document: bytes | None = None

    def on_get(self, _req: ApiRequest, resp: falcon.Response) -> None:
        """Send the document."""
        if self._document is None:
            self._document = json.dumps(document()).encode("ascii")
        resp.data = self._document

    on_head = on_get


def document() -> dict[str, Any]:
    """Return the whole document."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    for path, item in paths.items():
        if fields := _FIELD.findall(path):
            item["parameters"] = [_path_parameter(field) for field in fields]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "pRouter",
            "version": __version__,
            "description": "Jobs on many machines behind one HTTP endpoint. The router forwards requests below "
            "`/jobs/{connection}/{job}/http/` to the job.",
        },
        "paths": paths,
        "components": {"schemas": _schemas(), "securitySchemes": _SCHEMES},
        "security": [{"token": []}, {"password": []}, {}],
    }


def _models() -> set[type[BaseModel]]:
    found: set[type[BaseModel]] = {responses.Problem, responses.Listing}
    for operation in OPERATIONS:
        bodies = operation.body.models if isinstance(operation.body, OneOf) else (operation.body,)
        for content in (*bodies, *operation.success.values()):
            if isinstance(content, type):
                found.add(content)
    return found


def _schemas() -> dict[str, Any]:
    named = sorted(_models(), key=lambda model: model.__name__)
    _map, definitions = models_json_schema([(model, "validation") for model in named], ref_template=_REF)
    schemas: dict[str, Any] = definitions["$defs"]
    return schemas


def _operation(operation: Operation) -> dict[str, Any]:
    need = NEEDS[operation.name]
    made: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.text,
        "description": _ROLES.get(need) or f"For the role {need.value} and those above it.",
        "responses": {str(status): _response(status, content) for status, content in operation.success.items()},
    }
    if operation.parameters:
        made["parameters"] = [_parameter(parameter) for parameter in operation.parameters]
    if operation.body is not None:
        made["requestBody"] = {"required": operation.body_required, "content": _content(operation.body)}
    problem = {"application/problem+json": {"schema": {"$ref": _REF.format(model="Problem")}}}
    if need is Need.NOTHING:
        made["security"] = []
    for status in _errors(operation, need):
        made["responses"][str(status)] = {"description": HTTPStatus(status).phrase, "content": problem}
    return made


def _errors(operation: Operation, need: Need) -> list[int]:
    """Return the statuses of an operation's errors, with those that come of its access and of any request body."""
    access = () if need is Need.NOTHING else (401, 403, 429)
    body = (408, 413, 415) if operation.body is not None else ()  # too slow, too large, or in a coding
    return sorted({*operation.errors, *access, *body})


def _response(status: int, content: type[BaseModel] | tuple[str, ...] | None) -> dict[str, Any]:
    response: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if content is not None:
        response["content"] = _content(content)
    return response


def _content(content: type[BaseModel] | OneOf | tuple[str, ...]) -> dict[str, Any]:
    if isinstance(content, OneOf):
        references = [{"$ref": _REF.format(model=one.__name__)} for one in content.models]
        return {"application/json": {"schema": {"anyOf": references}}}
    if isinstance(content, tuple):
        return {media_type: {} for media_type in content}
    return {"application/json": {"schema": {"$ref": _REF.format(model=content.__name__)}}}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.where,
        "description": parameter.text,
        "schema": parameter.kind,
    }


def _path_parameter(field: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    if field == "name":
        schema["enum"] = ["stdout", "stderr"]
    return {"name": field, "in": "path", "required": True, "description": _FIELD_TEXTS[field], "schema": schema}
