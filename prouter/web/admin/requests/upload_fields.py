"""Header fields of uploads that change what the body means or whether it is accepted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import falcon

from prouter.conditions import Conditions
from prouter.errors import InvalidRequest, Unsupported

__all__ = ["body_of", "conditional", "refuse_coded", "refuse_unfit"]


def refuse_coded(req: falcon.Request) -> None:
    """Refuse a body with a content coding (RFC 9110 section 8.4), which nothing here decodes.

    Raises:
        Unsupported: Content-Encoding names a coding.
    """
    codings = [coding.strip().lower() for coding in req.env.get("HTTP_CONTENT_ENCODING", "").split(",")]
    if any(coding not in ("", "identity") for coding in codings):
        raise Unsupported(
            f"the body has Content-Encoding {req.env['HTTP_CONTENT_ENCODING'][:100]!a}; send it uncoded, without "
            "that header (compressed files and archives are sent as the bytes they are)"
        )


def refuse_unfit(req: falcon.Request, what: str) -> None:
    """Refuse an upload whose body is not the file or archive itself, or not all of it.

    Args:
        what: word for what is uploaded, for the error text.

    Raises:
        InvalidRequest: the body is a part (Content-Range), and uploads replace the whole (RFC 9110 section 14.5).
        Unsupported: the body has a content coding, or is a form.
    """
    if "HTTP_CONTENT_RANGE" in req.env:
        raise InvalidRequest(
            f"Invalid request: Content-Range is not supported on an upload: send the whole {what} without it"
        )
    refuse_coded(req)
    kind = req.env.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        raise Unsupported(
            f"the body is a form (multipart/form-data), which would be stored with its boundaries; send the bytes of "
            f"the {what} as the body: curl --data-binary @FILE, or curl -T FILE"
        )


def body_of(req: falcon.Request) -> Callable[[int], bytes]:
    """Return a reader for an upload's body, whose pauses are limited (``control.upload_timeout``), not its duration."""
    expect_upload = req.env.get("prouter.upload")
    if expect_upload is not None:
        expect_upload()
    read: Callable[[int], bytes] = req.env["wsgi.input"].read
    return read


def conditional(target: dict[str, Any], req: falcon.Request) -> dict[str, Any]:
    """Return `target` with the request's conditions, under which the agent makes the change."""
    conditions = Conditions.of(req.headers)
    if conditions is None:
        return target
    return {**target, "kind": target["kind"] + ".if", "conditions": conditions.to_wire()}
