"""Which of its routers an agent links to, if it links to some only."""

from __future__ import annotations

from collections import Counter

from prouter.agent.links.fanout import FORGOTTEN, PATIENCE, Fanout

ADDRESSES = [f"router-{number}:8889" for number in range(5)]


def test_without_a_number_it_links_to_all() -> None:
    fanout = Fanout("agent", ADDRESSES, None)
    assert sorted(fanout.chosen) == ADDRESSES
    assert not fanout.partial
    assert not Fanout("agent", ADDRESSES[:2], 3).partial


def test_links_of_many_agents_spread_over_all_routers() -> None:
    chosen = Counter(address for agent in range(1000) for address in Fanout(f"agent-{agent}", ADDRESSES, 2).chosen)
    assert sum(chosen.values()) == 2000
    assert all(300 < chosen[address] < 500 for address in ADDRESSES)


def test_a_router_that_is_added_moves_few_links() -> None:
    for agent in range(50):
        before = set(Fanout(f"agent-{agent}", ADDRESSES, 2).chosen)
        after = set(Fanout(f"agent-{agent}", [*ADDRESSES, "new:1"], 2).chosen)
        assert after == before or (len(before & after) == 1 and "new:1" in after)


def test_a_router_that_stays_away_is_made_up_for_and_nothing_is_cut_when_it_is_back() -> None:
    fanout = Fanout("agent", ADDRESSES, 2)
    first, second = fanout.chosen
    up = {first, second}
    assert fanout.look(up.__contains__, 0.0) == ([], [])
    up.remove(first)
    assert fanout.look(up.__contains__, 1.0) == ([], [])
    assert fanout.look(up.__contains__, PATIENCE) == ([], []), "it may only be restarted"
    begun, ended = fanout.look(up.__contains__, 1.0 + PATIENCE)
    assert (len(begun), ended) == (1, [])
    up.add(begun[0])
    assert fanout.look(up.__contains__, 30.0) == ([], [])
    up.add(first)
    assert fanout.look(up.__contains__, 31.0 + FORGOTTEN) == ([], [])
    assert set(fanout.chosen) == {first, second, *begun}


def test_a_substitute_that_is_lost_and_not_needed_is_not_dialled_any_more() -> None:
    fanout = Fanout("agent", ADDRESSES, 2)
    preferred = set(fanout.chosen)
    fanout.look(set().__contains__, 0.0)
    begun, _ = fanout.look(set().__contains__, PATIENCE)
    assert len(begun) == 2
    up = {*preferred, *begun}
    fanout.look(up.__contains__, 20.0)
    up -= set(begun)
    assert fanout.look(up.__contains__, 21.0) == ([], [])
    assert fanout.look(up.__contains__, 22.0 + FORGOTTEN) == ([], begun)
    assert set(fanout.chosen) == preferred


def test_a_substitute_is_kept_while_it_is_needed() -> None:
    fanout = Fanout("agent", ADDRESSES, 1)
    fanout.look(set().__contains__, 0.0)
    begun, _ = fanout.look(set().__contains__, PATIENCE)
    assert fanout.look(set().__contains__, 10 * FORGOTTEN)[1] == []
    assert set(begun) <= set(fanout.chosen)


def test_when_all_are_away_all_are_dialled_in_the_end() -> None:
    fanout = Fanout("agent", ADDRESSES, 1)
    now = 0.0
    while len(fanout.chosen) < len(ADDRESSES):
        fanout.look(set().__contains__, now)
        now += PATIENCE
        assert now < 20 * PATIENCE
