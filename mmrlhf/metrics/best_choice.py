"""How often a scorer finds the best of several answers, as benchmarks with one right answer among several count.

Follows: RewardBench 2 (arXiv 2506.01937) and its released code, `rewardbench/utils.py`: a query counts 1 where the
right answer scores highest, and 1 / n where it shares the highest score with n - 1 others; the subset Ties has a score
of its own, of accuracy and margins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


def best_choice(scores: Sequence[float], best: Sequence[bool]) -> float:
    """The share of best answers among those with the highest score: what a choice among these finds on average.

    scores, best: (K,) each. Raises: ValueError where their lengths differ or there is none.
    """
    if len(scores) != len(best) or not scores:
        raise ValueError(f"one truth for each of K >= 1 scores, got {len(scores)} scores and {len(best)}")
    top = [right for score, right in zip(scores, best, strict=True) if score == max(scores)]
    return sum(top) / len(top)


class RightAndWrong(NamedTuple):
    """Scores of the right and the wrong answers to one question."""

    right: Sequence[float]
    wrong: Sequence[float]

    @property
    def gap(self) -> float:
        """The worst right answer's score minus the best wrong one's."""
        return min(self.right) - max(self.wrong)

    @property
    def spread(self) -> float:
        """How far right answers are apart."""
        return max(self.right) - min(self.right)


def ties_score(single: Mapping[str, RightAndWrong], several: Mapping[str, RightAndWrong]) -> float:
    """RewardBench 2's score of its subset Ties.

    Three tenths each: share of questions with one right answer, and with several, whose right answers all score above
    the wrong ones. Two tenths each, over questions that are there in both ways: share whose right answers are closer to
    one another than to the wrong ones; and the same with the smaller gap of both ways. A hundredth: the mean of
    tanh(smaller gap / spread - 1), 0 where both are 0.

    Args:
        single, several: question -> scores, of questions with one right answer and with several.

    Raises: ValueError where no question is there in both ways.
    """
    both = [name for name in several if name in single]
    if not both:
        raise ValueError("no question is there with one and with several right answers")
    spread = np.array([several[name].spread for name in both])
    gap = np.array([several[name].gap for name in both])
    smaller = np.minimum(gap, [single[name].gap for name in both])
    with np.errstate(divide="ignore", invalid="ignore"):
        bonus = np.nan_to_num(np.tanh(smaller / spread - 1), nan=0.0)
    shares = [np.mean([each.gap > 0 for each in own.values()]) for own in (several, single)]
    found = 0.3 * sum(shares) + 0.2 * np.mean(gap > spread) + 0.2 * np.mean(smaller > spread) + 0.01 * np.mean(bonus)
    return float(found)
