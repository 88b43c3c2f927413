"""Values of every type and size, for fields that expect something else, drawn from a seed."""

from __future__ import annotations

from random import Random
from typing import Any

__all__ = ["NUMBERS", "TEXTS", "VALUES", "any_value"]

TEXTS: list[str] = [
    "", " ", "x", "x" * 33, "x" * 257, "x" * 513, "x" * 1025, "x" * 5_000, "x" * 70_000, "é" * 600, "💥" * 130, "\0",
    "\n", "\r\n", "a\nb", "\u202eevil", "\u2028", "\ufeff", "\x1b[31m", "<script>alert(1)</script>", "\"'", "..",
    "../x", "/", "a/b", "%s%d", "{0}", "$x", "nan", "-1", "0", "true", "null", "SIGKILL", "RUNNING", "strip",
    "127.0.0.1", "a" * 32, "0" * 32,
]  # fmt: skip
NUMBERS: list[Any] = [
    0, 1, -1, 2, 80, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1,
    0.0, -0.0, 0.5, -0.5, 1e-300, 1e18, 1e308, -1e308, float("inf"), float("-inf"), float("nan"), True, False,
]  # fmt: skip
OTHERS: list[Any] = [
    None, [], {}, [[]], [None], [1], ["x"], [-1, "x", None], [0] * 2_000, ["x" * 100] * 300, {"": ""}, {"x": 1},
    {"port": 1}, {"port": 0}, {"port": "80"}, {"socket": "/x"}, {"socket": "/x", "port": 1}, {"host": "\n", "port": 80},
    {"type": "any"}, {str(n): n for n in range(300)}, {"code": "x"}, [[["x"] * 3] * 3], b"", b"x", b"\xff" * 300,
]  # fmt: skip
VALUES: list[Any] = [*TEXTS, *NUMBERS, *OTHERS]
"""Values of every type that msgpack has, in many sizes."""


def any_value(random: Random, depth: int = 3) -> Any:
    """Return one of `VALUES`, or some of them in a list or map."""
    kind = random.randrange(12)
    if depth == 0 or kind > 1:
        return random.choice(VALUES)
    if kind == 0:
        return [any_value(random, depth - 1) for _ in range(random.randrange(4))]
    return {random.choice(TEXTS)[:40]: any_value(random, depth - 1) for _ in range(random.randrange(4))}
