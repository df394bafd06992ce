"""Whether a pairwise scorer knows how sure it is: reliability, expected calibration error, temperature, margins.

Follows: Guo et al. 2017 (arXiv 1706.04599), sections 2 and 4.2, with sigmoid(gap) of a pair as the probability.
Differs in: a pair has no fixed class, so each is shown in a random order, and the probability is that the response
shown first is the better one; with the better one always first, every scorer would look sure and right. The error after
the temperature is cross-fitted: each half of the queries gets the temperature of the other half.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit
from scipy.stats import rankdata

from mmrlhf.metrics.intervals import bootstrap_mean

_LOG_TEMPERATURES = (np.log(1e-3), np.log(1e3))
Floats = NDArray[np.float64]


class ReliabilityBin(NamedTuple):
    """One bin of probabilities [low, high): mean probability and how often it came true, nan where empty."""

    low: float
    high: float
    confidence: float
    accuracy: float
    count: int


def show_in_random_order(gaps: ArrayLike, *, seed: int = 0) -> tuple[Floats, NDArray[np.bool_]]:
    """Swap about half of the pairs.

    gaps: (P,) score of the chosen minus score of the rejected response. Returns (P,) score of the response shown first
    minus that of the other, and (P,) whether the one shown first is the chosen one.
    """
    gap = _pairs(gaps)
    chosen_first = np.random.default_rng(seed).random(len(gap)) < 0.5
    return np.where(chosen_first, gap, -gap), chosen_first


def reliability_bins(logits: ArrayLike, outcomes: ArrayLike, *, num_bins: int = 10) -> list[ReliabilityBin]:
    """Bin pairs by the probability that the response shown first is better.

    logits, outcomes: (P,) each, from `show_in_random_order`. Returns num_bins bins of equal width over [0, 1]; the last
    one includes 1.
    """
    logit, right = _pairs(logits), np.asarray(outcomes, dtype=np.float64)
    if right.shape != logit.shape:
        raise ValueError(f"one outcome per pair, got {right.shape} for {logit.shape}")
    probability = expit(logit)
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    place = np.minimum((probability * num_bins).astype(int), num_bins - 1)
    bins = []
    for i in range(num_bins):
        own = place == i
        sure, hits = (probability[own].mean(), right[own].mean()) if own.any() else (np.nan, np.nan)
        bins.append(ReliabilityBin(float(edges[i]), float(edges[i + 1]), float(sure), float(hits), int(own.sum())))
    return bins


def expected_calibration_error(logits: ArrayLike, outcomes: ArrayLike, *, num_bins: int = 10) -> float:
    """Mean distance of what came true from its probability over reliability_bins, weighted by count; in [0, 1]."""
    bins = [found for found in reliability_bins(logits, outcomes, num_bins=num_bins) if found.count]
    total = sum(found.count for found in bins)
    return sum(found.count * abs(found.accuracy - found.confidence) for found in bins) / total


def fit_temperature(gaps: ArrayLike) -> float:
    """T that minimises the mean of -log sigmoid(gap / T), within [0.001, 1000].

    gaps: (P,). Where every pair is right the likelihood only rises as T falls, and where most are wrong as T rises:
    the answer is then a bound.
    """
    gap = _pairs(gaps)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -gap * np.exp(-log_temperature)).mean())

    found: Any = minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def cross_fit_temperature(gaps: ArrayLike, groups: Sequence[Hashable] | None = None, *, seed: int = 0) -> Floats:
    """Divide gaps (P,) by the temperature fitted on the other half of the queries; groups (P,) names each pair's query.

    With a single query there is no other half, and its own temperature is used.
    """
    gap = _pairs(gaps)
    names = list(dict.fromkeys(groups)) if groups is not None else list(range(len(gap)))
    half = dict(zip(names, np.random.default_rng(seed).permutation(len(names)) % 2, strict=True))
    side = np.array([half[name] for name in (groups if groups is not None else names)])
    if len(names) < 2:
        return gap / fit_temperature(gap)
    scale = np.empty_like(gap)
    for own in (0, 1):
        scale[side == own] = fit_temperature(gap[side != own])
    return gap / scale


def calibration_report(
    gaps: ArrayLike, groups: Sequence[Hashable] | None = None, *, num_bins: int = 10, seed: int = 0
) -> dict[str, Any]:
    """Expected calibration error as it is and after a cross-fitted temperature, with the bins of both; JSON-able.

    gaps: (P,); groups: (P,) the query of every pair, or None. `temperature` is fitted on all pairs: it is the one to
    use on new data. Empty bins are left out.
    """
    gap = _pairs(gaps)
    logits, outcomes = show_in_random_order(gap, seed=seed)
    cooled = np.where(outcomes, 1.0, -1.0) * cross_fit_temperature(gap, groups, seed=seed)

    def filled(values: Floats) -> list[dict[str, Any]]:
        return [found._asdict() for found in reliability_bins(values, outcomes, num_bins=num_bins) if found.count]

    return {
        "num_pairs": len(gap),
        "ece": expected_calibration_error(logits, outcomes, num_bins=num_bins),
        "temperature": fit_temperature(gap),
        "ece_at_temperature": expected_calibration_error(cooled, outcomes, num_bins=num_bins),
        "bins": filled(logits),
        "bins_at_temperature": filled(cooled),
    }


def accuracy_by_margin(
    gaps: ArrayLike, groups: Sequence[Hashable] | None = None, *, num_bins: int = 8, seed: int = 0
) -> list[dict[str, Any]]:
    """How often pairs are right, by the size of their margin: bins of about equal count, smallest margins first.

    gaps: (P,); groups: (P,) the query of every pair, or None. Returns JSON-able {"low", "high", "margin" (mean size),
    "accuracy": {"mean", "low", "high"}, "count"} per bin; equal margins share a bin.
    """
    gap = _pairs(gaps)
    size = np.abs(gap)
    edges = np.unique(np.quantile(size, np.linspace(0, 1, num_bins + 1)))
    place = np.clip(np.searchsorted(edges, size, side="right") - 1, 0, max(len(edges) - 2, 0))
    bins = []
    for i in np.unique(place):
        own = place == i
        names = None if groups is None else [name for name, inside in zip(groups, own, strict=True) if inside]
        accuracy = bootstrap_mean(gap[own] > 0, groups=names, seed=seed)
        part = {"low": float(size[own].min()), "high": float(size[own].max()), "margin": float(size[own].mean())}
        bins.append({**part, "accuracy": accuracy._asdict(), "count": int(own.sum())})
    return bins


def rank_correlation(a: ArrayLike, b: ArrayLike, groups: Sequence[Hashable] | None = None) -> float:
    """Spearman's correlation of (N,) and (N,); with groups (N,), of the ranks' deviations from their group's means.

    Within groups it says whether, among the answers to one query, the higher a the higher b. nan where a side is
    constant.
    """
    first, second = (rankdata(_pairs(values)) for values in (a, b))
    if groups is not None:
        place = np.unique(np.array([str(name) for name in groups]), return_inverse=True)[1]
        first, second = (ranks - (np.bincount(place, ranks) / np.bincount(place))[place] for ranks in (first, second))
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / scale if scale > 1e-12 else float("nan")


def _pairs(values: ArrayLike) -> Floats:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or len(found) == 0:
        raise ValueError(f"gaps must be (P,) with P >= 1, got shape {found.shape}")
    return found
