"""What others say, made fit to show: bounded, without what controls a terminal or turns text, without credentials."""

from __future__ import annotations

import re

__all__ = ["shown", "visible", "without_credentials"]

_CREDENTIAL = re.compile(r"(pr[ti]_|shr_)[\w-]{16,}|(eyJ)[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}", re.ASCII)
"""Tokens, invitations and codes of share links as the router makes them, and what it signs (JWT, RFC 7519)."""


def shown(value: object, most: int = 64) -> str:
    """Return the beginning of what a peer sent in place of a text or a number; of anything else, its type.

    A list of a thousand lists, one within the other, cannot be printed: Python raises RecursionError.
    """
    if value is None or isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, str):
        return repr(value[:most])
    return f"a {type(value).__name__}"


def visible(text: str) -> str:
    """Return the text with each character that cannot be printed written as its escape, such as ``\\x1b``.

    Those are controls, line breaks, and what changes the direction of writing (Unicode's Bidi_Control), with which a
    name can look like another one.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def without_credentials(text: str) -> str:
    """Return the text with ``***`` in place of the credentials that this router gives out.

    For logs and error texts: a client may have put one into a place where none belongs, such as a path.
    """
    if "_" not in text and "eyJ" not in text:
        return text
    return _CREDENTIAL.sub(lambda match: f"{match[1] or match[2]}***", text)
