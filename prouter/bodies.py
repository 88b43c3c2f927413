"""The base of all request bodies, and what several kinds of bodies have in them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = ["Body", "Duration", "finite", "null_is"]

MAX_DURATION = 1e9
"""Seconds of a time limit, at most: thirty years."""


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


def null_is(default: Callable[[], Any]) -> Callable[[Any], Any]:
    """Replace an explicit null by the default: some clients write empty fields out as null."""
    return lambda value: default() if value is None else value


def finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError("must be a finite number")
    return number


Duration = Annotated[float, Field(gt=0, le=MAX_DURATION), AfterValidator(finite)]
