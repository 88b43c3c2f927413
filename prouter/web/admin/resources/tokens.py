"""Access tokens: made, listed and revoked; and who one is."""

from __future__ import annotations

import time
from typing import Any

import falcon

from prouter.access.gate import LOOK_EVERY, AccessGate
from prouter.access.requests import TokenRequest
from prouter.access.roles import Role
from prouter.access.tokens import Token
from prouter.config import ConfigError
from prouter.errors import Conflict, InvalidRequest, NotFound, Overloaded
from prouter.jobs import rfc3339
from prouter.web.admin.requests.body import discard_body, read_model
from prouter.web.admin.requests.context import ApiRequest, principal_of, send_json

__all__ = ["Tokens", "WhoAmI"]

_MAX_KEY = 255


class Tokens:
    """``/tokens`` and ``/tokens/ID``"""

    def __init__(self, gate: AccessGate) -> None:
        self._gate = gate

    def on_get(self, _req: ApiRequest, resp: falcon.Response) -> None:
        """All tokens, without their texts."""
        try:
            send_json(resp, {"tokens": [_described(token) for token in self._gate.tokens()]})
        except ConfigError as error:
            raise _unusable(error) from error

    on_head = on_get

    def on_post(self, req: ApiRequest, resp: falcon.Response) -> None:
        """Make one; its text is in this answer and nowhere else."""
        request = read_model(TokenRequest, req)
        key = req.get_header("Idempotency-Key")
        if key is not None and not 0 < len(key) <= _MAX_KEY:
            raise InvalidRequest(f"Invalid request: Idempotency-Key must have 1 to {_MAX_KEY} characters")
        scope = f"{principal_of(req).name} {key}" if key is not None else ""
        try:
            token, text = self._gate.file.issue(
                name=request.name,
                role=Role.of(request.role),
                now=time.time(),
                lifetime=request.expires,
                key=scope,
            )
        except ConfigError as error:
            raise _unusable(error) from error
        req.env["prouter.about"] = {
            "token": token.id,
            "name": token.name,
            "role": token.role.label,
        }  # for the audit log
        was_open = not self._gate.required
        self._gate.look()
        if was_open:
            time.sleep(LOOK_EVERY)  # with the first token, all workers begin to ask for one
        send_json(resp, {**_described(token), "token": text}, 201)

    def on_delete_one(self, req: ApiRequest, resp: falcon.Response, token: str) -> None:
        """Revoke one; answered once no worker accepts it."""
        discard_body(req)
        if any(known.id == token for known in self._gate.configured):
            raise Conflict(
                f"token '{token}' is in the configuration; remove it from control.tokens and reload the router"
            )
        try:
            if not self._gate.file.revoke(token):
                raise NotFound(f"there is no token '{token}'")
        except ConfigError as error:
            raise _unusable(error) from error
        self._gate.look()
        time.sleep(LOOK_EVERY)  # the other workers go by what they saw for so long
        resp.status = falcon.HTTP_204


class WhoAmI:
    """``/whoami``"""

    def on_get(self, req: ApiRequest, resp: falcon.Response) -> None:
        """Whom the credentials let in."""
        principal = principal_of(req)
        send_json(resp, {"name": principal.name or None, "role": principal.role.label, "via": principal.via})

    on_head = on_get


def _described(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "role": token.role.label,
        "created": rfc3339(token.created) if token.created else None,
        "expires": rfc3339(token.expires) if token.expires is not None else None,
    }


def _unusable(error: ConfigError) -> Overloaded:
    return Overloaded(f"the router's tokens cannot be used: {error}", code="tokens_unusable", retry_after=5)
