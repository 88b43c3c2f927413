"""Request bodies: JSON, read up to a limit, whatever its Content-Type, into a model; and small HTML forms."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

import falcon
from pydantic import BaseModel
from pydantic_core import from_json

from prouter.errors import InvalidRequest, TooLarge, Unsupported
from prouter.requests import Model, validated
from prouter.web.admin.requests.body_memory import BodyMemory
from prouter.web.admin.requests.upload_fields import refuse_coded

__all__ = ["MAX_JSON", "discard_body", "read_form", "read_json", "read_model", "read_one_of"]

MAX_JSON = 1024 * 1024
"""Largest JSON body, bytes."""

_PIECE = 65536
_FORM = "application/x-www-form-urlencoded"
_MOST_FIELDS = 16
_MANY_DIGITS = re.compile(rb"\d{19}")


def _read(req: falcon.Request) -> bytes | bytearray:
    """Read the whole body.

    Raises:
        TooLarge: the body is longer than `MAX_JSON`.
        Overloaded: the worker holds too many bytes of incomplete bodies.
    """
    length = req.content_length
    if length is not None and length > MAX_JSON:
        raise TooLarge(f"the request body is larger than {MAX_JSON} bytes")
    if length == 0 or (length is None and "HTTP_TRANSFER_ENCODING" not in req.env):
        return b""
    read = req.env["wsgi.input"].read
    left = MAX_JSON + 1 if length is None else length
    data: bytes = read(min(left, _PIECE))
    if len(data) == length:
        return data  # in one piece, as nearly always
    with BodyMemory.of(req).body() as body:
        while data:
            body.add(data)
            left -= len(data)
            data = read(min(left, _PIECE)) if left else b""
        if length is None and not left:
            raise TooLarge(f"the request body is larger than {MAX_JSON} bytes")
        return body.data


def read_json(req: falcon.Request) -> Any:
    """Return the body as JSON (RFC 8259), None if there is none.

    Raises:
        InvalidRequest: the body is not JSON.
        Unsupported: the body has a content coding.
        TooLarge: the body is longer than `MAX_JSON`.
    """
    refuse_coded(req)
    data = _read(req)
    if not data.strip():
        return None
    try:
        body = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"Invalid request: the body is not JSON: {error}") from None
    if _MANY_DIGITS.search(data):
        _refuse_long_numbers(body, ())
    return body


def _refuse_long_numbers(value: Any, where: tuple[str, ...]) -> None:
    """Refuse integers beyond the 64 bits of msgpack, which carries the request to the agent."""
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_long_numbers(item, (*where, key))
    elif isinstance(value, list):
        for position, item in enumerate(value):
            _refuse_long_numbers(item, (*where, str(position)))
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InvalidRequest(f"Invalid request: {'.'.join(where)}: the number is out of range")


def read_one_of(choose: Callable[[Any], type[Model]], req: falcon.Request) -> Model:
    """Return the body as the model that `choose` names for it. Errors are those of `read_model`."""
    body = read_json(req)
    model = choose(body)
    return _as_model(model, body, optional=False)


def read_model(model: type[Model], req: falcon.Request, *, optional: bool = False) -> Model:
    """Return the body as a model.

    Args:
        optional: whether a missing body means the model's defaults.

    Raises:
        InvalidRequest: the body is not JSON or does not fit the model; the detail says where.
        TooLarge: the body is longer than `MAX_JSON`.
    """
    return _as_model(model, read_json(req), optional=optional)


def _as_model(model: type[Model], body: Any, *, optional: bool) -> Model:
    if body is None:
        if not optional:
            raise InvalidRequest(f"Invalid request: the body is missing; {_wanted(model)}")
        body = {}
    return validated(model, body)


def read_form(req: falcon.Request) -> dict[str, str]:
    """Return the fields of a form, each of which may be there once. No error repeats any of it.

    Raises:
        InvalidRequest: the body is no form.
        Unsupported: it has another type, or a content coding.
        TooLarge: the body is longer than `MAX_JSON`.
    """
    refuse_coded(req)
    if (req.content_type or "").partition(";")[0].strip().lower() != _FORM:
        raise Unsupported(f"a form is expected: Content-Type: {_FORM}")
    try:
        pairs = parse_qsl(_read(req).decode("utf-8"), keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise InvalidRequest("Invalid request: the body is no form") from None
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidRequest("Invalid request: a field of the form is there twice")
    return found


def discard_body(req: falcon.Request) -> None:
    """Read and drop a body, so that the connection can serve another request.

    Raises:
        TooLarge: the body is longer than `MAX_JSON`.
    """
    _read(req)


def _wanted(model: type[BaseModel]) -> str:
    names = [name for name, field in model.model_fields.items() if field.is_required()]
    return f"it needs {', '.join(names)}" if names else "an object is needed"
