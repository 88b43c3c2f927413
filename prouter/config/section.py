"""Sections of configuration that router and agent share, and the list of all keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from prouter.tokens import problem_of

__all__ = ["MIB", "Fabric", "Identity", "Log", "Section", "Tokens", "keys", "sections", "usable_tokens"]

MIB = 1024 * 1024
Tokens = tuple[str, ...] | dict[str, str]
"""Tokens that are accepted from anybody, or the token of each uid."""


class Section(BaseModel):
    """Base of all sections: it refuses unknown keys, and does not change once made."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse a truth value where a number is expected: ``port: yes`` is a mistake, but Python takes True for 1."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise PydanticCustomError("truth_value", "not a truth value")
        return value


class Log(Section):
    """Level and format of the log."""

    level: Literal["debug", "info", "warning", "error", "fatal"] = Field("info", description="Output log level.")
    format: Literal["text", "json"] = Field("text", description="One line of text, or one JSON object, per event.")


class Fabric(Section):
    """Streams between router and agents."""

    window: int = Field(
        MIB // 4,
        ge=65536,
        le=64 * MIB,
        description="Bytes in flight per stream and direction at first. Streams to agents with a long round trip begin "
        "with four times that; fast streams grow to 32 times that, but at most 8 MiB.",
    )
    resume_timeout: float = Field(
        30.0, gt=0, description="Seconds for which streams survive a broken connection between router and agent."
    )


class Identity(Section):
    """Name and identifier of this process."""

    name: str | None = Field(None, max_length=128, description="Human-friendly name (optional), up to 128 characters.")
    uid: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        description="Unique identifier. Arbitrary non-empty string of at most 128 printable characters.",
    )

    @field_validator("name", "uid")
    @classmethod
    def _printable(cls, value: str | None) -> str | None:
        if value is not None and not value.isprintable():
            raise ValueError("printable characters are expected")
        return value


def usable_tokens(value: Tokens) -> Tokens:
    """Refuse tokens that protect nothing; the error does not repeat them."""
    for token in value.values() if isinstance(value, dict) else value:
        problem = problem_of(token)
        if problem is not None:
            raise ValueError(f"tokens that nobody can guess are expected; {problem}")
    return value


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every dotted key of a configuration with its pydantic field."""
    for name, field in model.model_fields.items():
        section = _section(field)
        if section is not None:
            yield from keys(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every dotted name of a section, outer before inner, with what it is for."""
    for name, field in model.model_fields.items():
        section = _section(field)
        if section is not None:
            yield f"{prefix}{name}", (section.__doc__ or "").strip()
            yield from sections(section, f"{prefix}{name}.")


def _section(field: FieldInfo) -> type[Section] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None
