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
    queued(order, "bbbbaa")
    assert served(order) == "bbabab"


def test_an_owner_who_queues_a_job_whenever_one_is_placed_waits_its_turn() -> None:
    order = FairOrder()
    queued(order, "abbb")
    told = ""
    for number in range(10, 20):
        first = order.first
        assert first is not None
        order.serve(first)
        told += str(first.owner)
        if first.owner == "a":
            order.append(Item(f"a{number}", "", "a", ONE, until=9.0, number=number))
    assert told.startswith("abbaba")


def test_the_round_after_a_restart_is_that_of_most_owners() -> None:
    order = FairOrder()
    stuck = queued(order, "d", TWO)
    items = queued(order, "abcabcabc")
    for item in items[:6]:
        order.serve(item)
    again = FairOrder()
    for item in [*stuck, *items[6:]]:
        again.insert(item)
    again.begin(items[5:6])
    assert queued(again, "e")[0].tag == items[6].tag == 2, "not that of the job that fits nowhere"


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
