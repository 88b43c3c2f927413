"""The bound on all JSON bodies that arrive at a worker."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.errors import Overloaded
from prouter.web.admin.requests.body_memory import BodyMemory, PartialBody


def test_the_largest_body_is_given_up_for_others() -> None:
    memory = BodyMemory(1000)
    with memory.body() as small, memory.body() as large:
        small.add(bytes(100))
        large.add(bytes(900))
        small.add(bytes(100))
        assert (len(small.data), len(large.data), memory.total) == (200, 0, 200)
        with pytest.raises(Overloaded):
            large.add(b"x")
    assert memory.total == 0


def test_a_body_that_is_the_largest_itself_is_refused() -> None:
    memory = BodyMemory(1000)
    with memory.body() as small, memory.body() as large:
        small.add(bytes(400))
        with pytest.raises(Overloaded):
            large.add(bytes(700))
        assert (len(small.data), memory.total) == (400, 400)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 400)), max_size=60))
def test_the_bound_holds_and_small_bodies_are_never_refused(steps: list[tuple[int, int]]) -> None:
    memory = BodyMemory(1000)
    bodies: dict[int, PartialBody] = {}
    open_bodies = [memory.body() for _ in range(6)]
    for number, one in enumerate(open_bodies):
        bodies[number] = one.__enter__()
    for number, size in steps:
        before = len(bodies[number].data)
        try:
            bodies[number].add(bytes(size))
        except Overloaded:
            assert before == 0 or all(before + size >= len(other.data) for other in bodies.values())
        assert memory.total == sum(len(body.data) for body in bodies.values()) <= 1000
    for one in open_bodies:
        one.__exit__(None, None, None)
    assert memory.total == 0
