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

from mmrlhf.metrics.intervals import bootstrap_mean, paired_difference


def accuracy_report(
    keys: Sequence[str],
    chosen_scores: ArrayLike,
    rejected_scores: ArrayLike,
    categories: Sequence[str] | None = None,
    *,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """ACC and ACC+ over everything and per category, with 95% bootstrap intervals over queries.

    Args:
        keys: (P,) the query of every pair.
        chosen_scores, rejected_scores: (P,) each; a score that is not a number makes its pair wrong.
        categories: (P,) names, or None for no breakdown.
        num_bootstrap, seed: of the intervals.

    Returns: {"acc": {"mean", "low", "high"}, "acc_plus": the same, "num_pairs", "num_queries", "num_ties",
        "categories": {name: the same without "categories"}}; JSON-able.
    Raises: ValueError where lengths differ or there is no pair.
    """
    chosen, rejected = np.asarray(chosen_scores, dtype=np.float64), np.asarray(rejected_scores, dtype=np.float64)
    if not len(keys) == len(chosen) == len(rejected) or chosen.ndim != 1 or rejected.ndim != 1:
        raise ValueError(f"one pair each, got {len(keys)} keys, scores {chosen.shape} and {rejected.shape}")
    if categories is not None and len(categories) != len(keys):
        raise ValueError(f"one category per pair, got {len(categories)} for {len(keys)} pairs")
    right, tie = chosen > rejected, chosen == rejected
    report = _accuracies(keys, right, tie, num_bootstrap, seed)
    report["categories"] = {}
    if categories is not None:
        category_of = dict(zip(reversed(keys), reversed(categories), strict=True))
        for name in sorted(set(category_of.values())):
            own = [i for i, key in enumerate(keys) if category_of[key] == name]
            report["categories"][name] = _accuracies([keys[i] for i in own], right[own], tie[own], num_bootstrap, seed)
    return report


def accuracy_difference(
    keys: Sequence[str],
    right: ArrayLike,
    other_right: ArrayLike,
    *,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """ACC and ACC+ of one scorer minus those of another on the same pairs, with paired bootstrap intervals.

    keys: (P,) the query of every pair; right, other_right: (P,) bool. What both scorers find hard or easy cancels, so
    these intervals are narrower than the scorers' own. Returns {"acc", "acc_plus": {"mean", "low", "high"},
    "num_pairs", "num_queries"}; JSON-able.
    """
    one, other = (np.asarray(side, dtype=np.bool_) for side in (right, other_right))
    acc = paired_difference(one, other, groups=keys, num_bootstrap=num_bootstrap, seed=seed)
    whole, other_whole = (list(_all_right(keys, side).values()) for side in (one, other))
    acc_plus = paired_difference(whole, other_whole, num_bootstrap=num_bootstrap, seed=seed)
    return {
        "acc": acc._asdict(),
        "acc_plus": acc_plus._asdict(),
        "num_pairs": len(keys),
        "num_queries": len(whole),
    }


def _all_right(keys: Sequence[str], right: NDArray[np.bool_]) -> dict[str, bool]:
    """Every query, and whether all its pairs are right."""
    found: dict[str, bool] = {}
    for key, hit in zip(keys, right.tolist(), strict=True):
        found[key] = found.get(key, True) and hit
    return found


def _accuracies(
    keys: Sequence[str], right: NDArray[np.bool_], tie: NDArray[np.bool_], num_bootstrap: int, seed: int
) -> dict[str, Any]:
    all_right = _all_right(keys, right)
    acc = bootstrap_mean(right, groups=keys, num_bootstrap=num_bootstrap, seed=seed)
    acc_plus = bootstrap_mean(list(all_right.values()), num_bootstrap=num_bootstrap, seed=seed)
    return {
        "acc": acc._asdict(),
        "acc_plus": acc_plus._asdict(),
        "num_pairs": len(keys),
        "num_queries": len(all_right),
        "num_ties": int(tie.sum()),
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
