"""Best of several and RewardBench 2's score of ties: what the release's own functions computed for these rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.metrics.best_choice import RightAndWrong, best_choice, ties_score

# `process_single_model` of allenai/reward-bench, rewardbench/utils.py, run on these rows
THEIRS = [
    (
        {"1": ([2.0], [1.0, 0.5]), "2": ([0.0], [1.0])},
        {"1": ([3.0, 2.5], [1.0]), "2": ([1.0, 4.0], [0.0, 0.5])},
        0.6494576624710654,
    ),
    ({"1": ([5.0], [4.0])}, {"1": ([5.0, 5.0, 5.0], [4.0, 1.0])}, 1.01),
    (
        {"1": ([1.0], [1.0]), "2": ([7.0], [3.0]), "3": ([9.0], [2.0])},
        {"1": ([2.0, 2.0], [2.0]), "3": ([9.0, 8.0, 10.0], [7.0, 1.0])},
        0.3476894142136999,
    ),
]


@pytest.mark.parametrize(("single", "several", "theirs"), THEIRS)
def test_ties_are_scored_as_the_release_scores_them(single, several, theirs):
    ours = [{name: RightAndWrong(*sides) for name, sides in own.items()} for own in (single, several)]
    assert ties_score(*ours) == pytest.approx(theirs, abs=1e-12)


def test_ties_need_a_question_in_both_ways():
    with pytest.raises(ValueError, match="one and with several"):
        ties_score({"1": RightAndWrong([1.0], [0.0])}, {"2": RightAndWrong([1.0, 2.0], [0.0])})


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_one_right_answer_counts_one_over_those_that_share_the_top(scores):
    """With the right one first, as the release has it."""
    expected = 1 / scores.count(max(scores)) if scores[0] == max(scores) else 0
    assert best_choice(scores, [True, *[False] * (len(scores) - 1)]) == pytest.approx(expected)


def test_several_best_answers():
    assert best_choice([1.0, 2.0, 2.0], [True, True, False]) == 0.5
    assert best_choice([0.0, 2.0, 2.0], [False, True, True]) == 1.0
    with pytest.raises(ValueError, match="one truth"):
        best_choice([1.0], [])
