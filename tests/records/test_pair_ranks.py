"""Ranks say exactly what the pairs say, or the pairs are kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.records.pair_ranks import rank_from_pairs


def implied(ranks: tuple[int, ...]) -> set[tuple[int, int]]:
    return {(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b}


@st.composite
def pair_sets(draw: st.DrawFn) -> tuple[int, set[tuple[int, int]]]:
    num = draw(st.integers(2, 5))
    number = st.integers(0, num - 1)
    return num, {pair for pair in draw(st.sets(st.tuples(number, number))) if pair[0] != pair[1]}


@given(pair_sets())
def test_nothing_is_invented_and_nothing_is_lost(case: tuple[int, set[tuple[int, int]]]) -> None:
    num, pairs = case
    ranking = rank_from_pairs(num, pairs)
    assert (ranking.ranks is None) != (ranking.pairs is None)
    assert (implied(ranking.ranks) if ranking.ranks else set(ranking.pairs or ())) == pairs


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_every_weak_order_is_found_again(ranks: list[int]) -> None:
    dense = [sorted(set(ranks)).index(rank) + 1 for rank in ranks]
    ranking = rank_from_pairs(len(ranks), implied(tuple(ranks)))
    assert ranking.ranks == tuple(dense) and ranking.problems == ()


def test_a_partial_order_is_kept_as_pairs_and_is_no_problem() -> None:
    ranking = rank_from_pairs(4, [(0, 1), (2, 3)])
    assert ranking.ranks is None and ranking.pairs == ((0, 1), (2, 3)) and ranking.problems == ()


def test_contradictions_and_cycles_are_named() -> None:
    both = rank_from_pairs(2, [(0, 1), (1, 0)])
    assert set(both.pairs or ()) == {(0, 1), (1, 0)} and "0 and 1" in both.problems[0]
    ring = rank_from_pairs(3, [(0, 1), (1, 2), (2, 0)])
    assert len(ring.pairs or ()) == 3 and len(ring.problems) == 1 and "cycle" in ring.problems[0]


def test_a_tie_that_is_also_a_pair_is_a_contradiction() -> None:
    assert "tie" in rank_from_pairs(2, [(0, 1)], ties=[(1, 0)]).problems[0]
    assert rank_from_pairs(3, [(0, 1), (0, 2)], ties=[(1, 2)]) == rank_from_pairs(3, [(0, 1), (0, 2)])
