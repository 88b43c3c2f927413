"""The order of waiting jobs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prouter.broker.queue.item import Item, Shape
from prouter.broker.queue.order import FairOrder

ONE, TWO = Shape("1", {}), Shape("2", {})


def queued(order: FairOrder, owners: str, shape: Shape = ONE) -> list[Item]:
    """Append one job for each letter, which names its owner."""
    items = []
    for owner in owners:
        number = len(order) + 1
        items.append(Item(f"{owner}{number}", "", owner, shape, until=9.0, number=number))
        order.append(items[-1])
    return items


def served(order: FairOrder) -> str:
    """The owners in the order in which their jobs go."""
    told = ""
    while order.first is not None:
        told += str(order.first.owner)
        order.serve(order.first)
    return told


def test_owners_take_turns_whoever_came_first() -> None:
    order = FairOrder()
    queued(order, "aaaabb")
    assert served(order) == "ababaa"


def test_an_owner_that_comes_later_waits_one_round_at_most() -> None:
    order = FairOrder()
    for item in queued(order, "aaaaaaaa")[:4]:
        order.serve(item)
    queued(order, "b")
    assert served(order).index("b") <= 1


def test_an_owner_without_jobs_saves_up_no_turns() -> None:
    order = FairOrder()
    for item in queued(order, "aaaa"):
        order.serve(item)
    queued(order, "bbaa")
    assert served(order) == "baba"


def test_jobs_of_one_owner_go_first_in_first_out() -> None:
    order = FairOrder()
    items = queued(order, "aaaaa")
    assert list(order) == items
    assert [order.position(item) for item in items] == [1, 2, 3, 4, 5]


def test_only_the_first_of_each_shape_is_looked_at() -> None:
    order = FairOrder()
    first, _, _ = queued(order, "aaa", ONE)
    other, _ = queued(order, "bb", TWO)
    assert order.heads() == [first, other]
    assert order.heads(after=first.key) == [other]
    assert order.heads(most=1) == [first]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([ONE, TWO]), st.integers(0, 2)), max_size=40))
def test_the_indexes_agree_with_a_plain_sort(steps: list[tuple[str, Shape, int]]) -> None:
    order, items = FairOrder(), list[Item]()
    for number, (owner, shape, what) in enumerate(steps):
        if what == 2 and items:
            item = items.pop(number % len(items))
            (order.serve if number % 2 else order.remove)(item)
        else:
            items.append(Item(str(number), "", owner, shape, until=0.0, number=number))
            order.append(items[-1])
        expected = sorted(items, key=lambda item: item.key)
        assert list(order) == expected
        assert [order.position(item) for item in expected] == list(range(1, len(items) + 1))
        for shape in (ONE, TWO):
            assert list(order.of_shape(shape)) == [item for item in expected if item.shape == shape]
        firsts = {item.shape: item for item in reversed(expected)}
        assert order.heads() == sorted(firsts.values(), key=lambda item: item.key)
