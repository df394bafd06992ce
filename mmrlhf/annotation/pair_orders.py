"""How rankings order pairs of answers: one ranking of several, and how far two agree.

Follows: Copeland 1951 for one ranking of several: an answer's score is the number of answers that most annotators rank
below it, minus the number that most rank above it; it needs no annotator to have ranked everything, and a majority is
never overruled by a wide margin elsewhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

Ranks = Sequence[int | None]


def orders(ranks: Ranks) -> np.ndarray:
    """Which of every two answers is better, (K, K): 1 the first, -1 the second, 0 as good, nan without a rank."""
    known = np.array([np.nan if rank is None else rank for rank in ranks], dtype=np.float64)
    return np.sign(known[None, :] - known[:, None])


def one_ranking(rankings: Sequence[Ranks]) -> tuple[int | None, ...]:
    """The ranking (K,) of several annotators' rankings (A, K); None for an answer that nobody compared with another.

    A single ranking comes out as itself, without gaps.
    """
    votes = np.stack([orders(ranks) for ranks in rankings])
    compared = ~np.isnan(votes)
    majority = np.sign(np.where(compared, votes, 0.0).sum(0))
    others = ~np.eye(votes.shape[1], dtype=np.bool_)
    known = np.asarray((compared.any(0) & others).any(1))
    if votes.shape[1] == 1:
        known = np.array([any(ranks[0] is not None for ranks in rankings)])
    wins = majority.sum(1)
    levels = sorted(set(wins[known].tolist()), reverse=True)
    return tuple(levels.index(win) + 1 if is_known else None for win, is_known in zip(wins, known, strict=True))


def pair_agreement(first: Ranks, second: Ranks) -> list[float]:
    """Of each pair that both rank: 1 the same order, 0 the reverse, 1/2 where just one of them ties; ties agree."""
    a, b = orders(first), orders(second)
    pairs = itertools.combinations(range(len(first)), 2)
    return [1 - abs(a[pair] - b[pair]) / 2 for pair in pairs if not np.isnan(a[pair] + b[pair])]


def reversed_share(first: Ranks, second: Ranks) -> float:
    """The share of pairs that both rank, and in opposite orders; 0 without such pairs."""
    found = pair_agreement(first, second)
    return found.count(0.0) / len(found) if found else 0.0
