"""What preference training did to a policy: distance from the reference, and change against before.

Follows: Schulman 2020, "Approximating KL divergence", for the estimators k1 and k3; DPO (arXiv 2305.18290), section
5.1, for the implicit reward.
Differs in: changes always come with intervals over queries, and with the shares of queries that gained and lost.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmrlhf.metrics.intervals import ROUNDING, Interval, group_sums, paired_difference

Floats = NDArray[np.float64]


def log_ratios(policy_logprob: ArrayLike, reference_logprob: ArrayLike) -> Floats:
    """log policy - log reference (N,) of sequences with these summed log-probabilities (N,).

    Their mean over sequences that the policy sampled is k1, an unbiased estimate of KL(policy || reference) in nats a
    sequence, which can be negative. Of any response it is the implicit reward, up to beta.
    """
    first, second = np.asarray(policy_logprob, dtype=np.float64), np.asarray(reference_logprob, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"log-probabilities must be (N,) of one length, got {first.shape} and {second.shape}")
    return first - second


def k3_estimates(ratios: ArrayLike) -> Floats:
    """exp(-d) - 1 + d (N,) of log-ratios d of sampled sequences: the KL's estimate that is never negative.

    Unbiased too, usually of lower variance than d, but dominated by single sequences that the reference likes much
    better; biased for sequences that were not sampled from the policy at temperature 1. The exponent is cut at 50.
    """
    ratio = np.asarray(ratios, dtype=np.float64)
    return np.expm1(np.minimum(-ratio, 50.0)) + ratio


@dataclass(frozen=True)
class Change:
    """A measure after minus before on the same items, and the shares of queries that gained and lost."""

    mean: Interval
    better: float
    worse: float
    num_queries: int


def change(before: ArrayLike, after: ArrayLike, queries: Sequence[Hashable]) -> Change:
    """Compare (N,) numbers before and after, item by item; queries (N,) names each item's query."""
    old, new = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    mean = paired_difference(new, old, groups=queries)
    gains, _ = group_sums(new - old, queries)
    # the same numbers in another order may add up to a little more or less
    least = ROUNDING * float(np.abs([old, new]).max())
    return Change(mean, float((gains > least).mean()), float((gains < -least).mean()), len(gains))
