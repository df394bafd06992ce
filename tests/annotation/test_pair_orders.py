"""One ranking of several annotators', and how far two rankings agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.annotation.filled_forms import closed_ranks
from mmrlhf.annotation.pair_orders import one_ranking, pair_agreement, reversed_share

RANKINGS = st.integers(2, 5).flatmap(
    lambda size: st.lists(st.lists(st.none() | st.integers(1, 6), min_size=size, max_size=size), min_size=1, max_size=4)
)


@given(RANKINGS)
def test_a_ranking_alone_or_repeated_comes_out_as_itself(rankings: list[list[int | None]]) -> None:
    first = rankings[0]
    expected = closed_ranks(first) if sum(rank is not None for rank in first) > 1 else (None,) * len(first)
    assert one_ranking([first]) == one_ranking([first, first, first]) == expected


@given(RANKINGS)
def test_what_all_prefer_is_ranked_higher_and_order_of_annotators_does_not_matter(rankings) -> None:
    found = one_ranking(rankings)
    assert found == one_ranking(rankings[::-1])
    complete = [ranks for ranks in rankings if None not in ranks]
    if len(complete) == len(rankings):
        for a in range(len(found)):
            for b in range(len(found)):
                if all(ranks[a] < ranks[b] for ranks in rankings):
                    assert found[a] < found[b]


def test_a_majority_is_not_overruled_by_a_wide_margin() -> None:
    # by mean rank (4/3, 5/3 against 2, ...) the first two would come out as close; two of three prefer the first
    assert one_ranking([[1, 2, 3], [1, 2, 3], [3, 1, 2]]) == (1, 2, 3)
    assert one_ranking([[1, 2], [2, 1]]) == (1, 1)
    assert one_ranking([[1, 2, None], [None, 1, 2]]) == (1, 2, 3)
    assert one_ranking([[1, 2, None]]) == (1, 2, None)


@given(RANKINGS)
def test_agreement_with_oneself_the_reverse_and_one_tie(rankings: list[list[int | None]]) -> None:
    ranks = rankings[0]
    turned = [None if rank is None else 7 - rank for rank in ranks]
    assert set(pair_agreement(ranks, ranks)) <= {1.0}
    strict = [value for value in pair_agreement(ranks, turned) if value == 0]
    known = [rank for rank in ranks if rank is not None]
    pairs = sum(a != b for place, a in enumerate(known) for b in known[place + 1 :])
    assert len(strict) == pairs
    assert pair_agreement([1, 1], [1, 2]) == [0.5] and reversed_share([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)
    assert np.isclose(reversed_share(ranks, ranks), 0)
