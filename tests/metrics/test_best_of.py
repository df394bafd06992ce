"""The best of n, against counting all subsets."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.metrics.best_of import choice_probabilities, kl_bound, sizes_up_to

ANSWERS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=4)


def counted(rewards: list[float], drawn: list[int], n: int) -> list[float]:
    """Every subset by itself; a tie goes to each of its draws in turn."""
    draws = [place for place, count in enumerate(drawn) for _ in range(count)]
    found = np.zeros(len(rewards))
    subsets = list(itertools.combinations(draws, n))
    for subset in subsets:
        best = [place for place in subset if rewards[place] == max(rewards[other] for other in subset)]
        for place in best:
            found[place] += 1 / len(best) / len(subsets)
    return found.tolist()


@given(ANSWERS, st.data())
def test_it_is_the_share_of_subsets(answers: list[tuple[int, int]], data: st.DataObject) -> None:
    rewards, drawn = [float(reward) for reward, _ in answers], [count for _, count in answers]
    n = data.draw(st.integers(1, sum(drawn)))
    found = choice_probabilities(rewards, drawn, n)
    assert found.tolist() == pytest.approx(counted(rewards, drawn, n))
    assert found.sum() == pytest.approx(1)


def test_by_hand() -> None:
    """Of three answers with rewards 0, 1, 2, a pair has 2 in two of three cases and else 1."""
    assert choice_probabilities([0.0, 2.0, 1.0], [1, 1, 1], 2).tolist() == pytest.approx([0, 2 / 3, 1 / 3])
    assert choice_probabilities([0.0, 1.0], [3, 1], 1).tolist() == pytest.approx([0.75, 0.25])
    assert kl_bound(1) == 0 and kl_bound(4) == pytest.approx(math.log(4) - 0.75)
    assert sizes_up_to(6) == [1, 2, 4, 6] and sizes_up_to(8) == [1, 2, 4, 8] and sizes_up_to(1) == [1]


def test_the_bound_is_reached_by_a_policy_of_many_equally_likely_answers() -> None:
    """KL(best of n || policy) of a policy that is uniform over many answers, none of which is equal to another."""
    many, n = 4000, 5
    ends = (np.arange(many + 1) / many) ** n
    chosen = np.diff(ends)
    kl = float((chosen * np.log(chosen * many)).sum())
    assert kl == pytest.approx(kl_bound(n), abs=1e-3) and kl <= kl_bound(n)


@pytest.mark.parametrize("n", [0, 4])
def test_more_than_were_drawn_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match="1 to the 3"):
        choice_probabilities([0.0, 1.0], [1, 2], n)


def test_what_was_not_drawn_is_not_chosen() -> None:
    assert choice_probabilities([2.0, 1.0, 1.0], [0, 1, 3], 2).tolist() == [0.0, 0.25, 0.75]
