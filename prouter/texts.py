"""Texts of others, shown to people: without characters that control a terminal or the direction of writing."""

from __future__ import annotations

__all__ = ["visible"]


def visible(text: str) -> str:
    """Return the text with each character that cannot be printed written as its escape, such as ``\\x1b``.

    Those are controls, line breaks, and what changes the direction of writing (Unicode's Bidi_Control), with which a
    name can look like another one.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
