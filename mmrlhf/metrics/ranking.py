"""How often a scorer ranks pairs rightly: ACC over pairs, ACC+ over queries.

Follows: MM-RLHF-RewardBench (arXiv 2502.10391) and its released script: a pair is right where the chosen response's
score is strictly higher, so ties are wrong; ACC+ is the share of queries with every pair right.
Differs in: always with intervals; a query's category is the one of its first pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchmetrics import Metric

from mmrlhf.metrics.intervals import group_numbers, paired_share_difference, share_interval, share_of_counts


def accuracy_report(
    keys: Sequence[str],
    chosen_scores: ArrayLike,
    rejected_scores: ArrayLike,
    categories: Sequence[str] | None = None,
) -> dict[str, Any]:
    """ACC and ACC+ over everything and per category, with 95% intervals over queries.

    Args:
        keys: (P,) the query of every pair.
        chosen_scores, rejected_scores: (P,) each; a score that is not a number makes its pair wrong.
        categories: (P,) names, or None for no breakdown.

    Returns: {"acc": {"mean", "low", "high"}, "acc_plus": the same, "num_pairs", "num_queries", "num_ties",
        "categories": {name: the same without "categories"}}; JSON-able, the ends of one query's interval are None.
    Raises: ValueError where lengths differ or there is no pair.
    """
    chosen, rejected = np.asarray(chosen_scores, dtype=np.float64), np.asarray(rejected_scores, dtype=np.float64)
    if not len(keys) == len(chosen) == len(rejected) or chosen.ndim != 1 or rejected.ndim != 1:
        raise ValueError(f"one pair each, got {len(keys)} keys, scores {chosen.shape} and {rejected.shape}")
    if len(keys) == 0:
        raise ValueError("an accuracy is of P pairs, P >= 1, got none")
    if categories is not None and len(categories) != len(keys):
        raise ValueError(f"one category per pair, got {len(categories)} for {len(keys)} pairs")
    query = group_numbers(keys)
    sides = (chosen > rejected, chosen == rejected, np.ones(len(keys)))
    sums = np.stack([np.bincount(query, side).astype(np.float64) for side in sides])
    report = _accuracies(sums)
    report["categories"] = {}
    if categories is not None:
        first = np.unique(query, return_index=True)[1]
        own: dict[str, list[int]] = {}
        for number, place in enumerate(first.tolist()):
            own.setdefault(str(categories[place]), []).append(number)
        report["categories"] = {name: _accuracies(sums[:, own[name]]) for name in sorted(own)}
    return report


def accuracy_difference(keys: Sequence[str], right: ArrayLike, other_right: ArrayLike) -> dict[str, Any]:
    """ACC and ACC+ of one scorer minus those of another on the same pairs, with paired 95% intervals over queries.

    keys: (P,) the query of every pair; right, other_right: (P,) bool. What both scorers find hard or easy cancels, so
    these intervals are narrower than the scorers' own. Returns {"acc", "acc_plus": {"mean", "low", "high"},
    "num_pairs", "num_queries"}; JSON-able.
    """
    sides = [np.asarray(side, dtype=np.bool_) for side in (right, other_right)]
    query = group_numbers(keys)
    pairs = np.bincount(query)
    whole = [np.bincount(query, side) == pairs for side in sides]
    return {
        "acc": paired_share_difference(*sides, groups=keys)._asdict(),
        "acc_plus": paired_share_difference(*whole)._asdict(),
        "num_pairs": len(keys),
        "num_queries": len(pairs),
    }


def _accuracies(sums: NDArray[np.float64]) -> dict[str, Any]:
    """The report on queries of which each has (right, tied, all) pairs: (3, G)."""
    right, tied, pairs = sums
    return {
        "acc": share_of_counts(right, pairs)._asdict(),
        "acc_plus": share_interval(right == pairs)._asdict(),
        "num_pairs": int(pairs.sum()),
        "num_queries": len(pairs),
        "num_ties": int(tied.sum()),
    }


class PairAccuracy(Metric):
    """Weighted share of pairs with a positive logit; ties are wrong. Sums over batches and ranks; nan without pairs."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    correct: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("correct", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, logit: Tensor, weight: Tensor | None = None) -> None:
        """Add pairs: logit (P,), and weight (P,) or None for 1 each."""
        weight = torch.ones_like(logit) if weight is None else weight
        if logit.ndim != 1 or weight.shape != logit.shape:
            raise ValueError(f"logit and weight must be (P,), got {tuple(logit.shape)} and {tuple(weight.shape)}")
        self.correct += (weight * (logit > 0)).sum()
        self.total += weight.sum()

    def compute(self) -> Tensor:
        """The accuracy so far, a scalar."""
        return self.correct / self.total
