"""Whether a pairwise scorer knows how sure it is: reliability, expected calibration error, temperature, margins.

Follows: Guo et al. 2017 (arXiv 1706.04599), sections 2 and 4.2, with sigmoid(gap) of a pair as the probability.
Differs in: a pair has no fixed class, so each is shown in both orders, (a, b) and (b, a), and the probability is that
the response shown first is the better one; with the better one always first, every scorer would look sure and right,
and one random order adds its own chance to the error. The error after the temperature is cross-fitted: each half of
the queries gets the temperature of the other half. A few pairs show an error even where the scorer is perfectly
calibrated; how much is estimated beside it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit
from scipy.stats import rankdata

from mmrlhf.metrics.intervals import Interval, mean_interval, share_interval

_LOG_TEMPERATURES = (np.log(1e-3), np.log(1e3))
Floats = NDArray[np.float64]


class ReliabilityBin(NamedTuple):
    """One bin of probabilities [low, high): mean probability and how often it came true, nan where empty."""

    low: float
    high: float
    confidence: float
    accuracy: float
    count: int


def show_in_both_orders(gaps: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Show every pair as (chosen, rejected) and as (rejected, chosen).

    gaps: (P,) score of the chosen minus score of the rejected response. Returns (2 P,) score of the response shown
    first minus that of the other, and (2 P,) whether the one shown first is the chosen one.
    """
    gap = _pairs(gaps)
    return np.concatenate([gap, -gap]), np.repeat([True, False], len(gap))


def reliability_bins(logits: ArrayLike, outcomes: ArrayLike, *, num_bins: int = 10) -> list[ReliabilityBin]:
    """Bin pairs by the probability that the response shown first is better.

    logits, outcomes: (N,) each, from `show_in_both_orders`. Returns num_bins bins of equal width over [0, 1]; the last
    one includes 1.
    """
    logit, right = _pairs(logits), np.asarray(outcomes, dtype=np.float64)
    if right.shape != logit.shape:
        raise ValueError(f"one outcome per pair, got {right.shape} for {logit.shape}")
    probability, edges = expit(logit), np.linspace(0.0, 1.0, num_bins + 1)
    place = _bin_of(probability, num_bins)
    count = np.bincount(place, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        sure, hits = (np.bincount(place, side, minlength=num_bins) / count for side in (probability, right))
    rows = zip(edges[:-1].tolist(), edges[1:].tolist(), sure.tolist(), hits.tolist(), count.tolist(), strict=True)
    return [ReliabilityBin(*row) for row in rows]


def _bin_of(probability: Floats, num_bins: int) -> NDArray[np.int64]:
    return np.minimum((probability * num_bins).astype(np.int64), num_bins - 1)


def expected_calibration_error(gaps: ArrayLike, *, num_bins: int = 10) -> float:
    """Mean distance of what came true from its probability over bins, weighted by count, with pairs in both orders.

    gaps: (P,). In [0, 1]. Without an interval: the error of few pairs is mostly chance and always upwards, so that an
    interval around it holds the true one in 62% of the cases at 46 queries; `error_of_chance` says how much it is.
    """
    return sum(
        found.count * abs(found.accuracy - found.confidence)
        for found in reliability_bins(*show_in_both_orders(gaps), num_bins=num_bins)
        if found.count
    ) / (2 * len(_pairs(gaps)))


def error_of_chance(gaps: ArrayLike, *, num_bins: int = 10, num_draws: int = 200, seed: int = 0) -> float:
    """The calibration error to expect of a scorer with these gaps (P,) where it is perfectly calibrated."""
    size = np.abs(_pairs(gaps))
    # both orders: of a tie they share a bin, where they cancel
    place = _bin_of(expit(np.concatenate([size, -size])), num_bins)
    probability, draw, errors = expit(size), np.random.default_rng(seed), []
    for _ in range(num_draws):
        off = (draw.random(len(size)) < probability) - probability
        errors.append(np.abs(np.bincount(place, np.concatenate([off, -off]))).sum() / len(place))
    return float(np.mean(errors))


def log_loss(gaps: ArrayLike, groups: Sequence[Hashable] | None = None) -> Interval:
    """Mean of -log sigmoid(gap) over pairs (P,), in nats, with a 95% interval over queries; chance is log 2."""
    return mean_interval(np.logaddexp(0, -_pairs(gaps)), groups=groups, most=math.inf)


def brier_score(gaps: ArrayLike, groups: Sequence[Hashable] | None = None) -> Interval:
    """Mean of (1 - sigmoid(gap))^2 over pairs (P,), with a 95% interval over queries; chance is 1/4."""
    return mean_interval(expit(-_pairs(gaps)) ** 2, groups=groups, most=1.0)


def fit_temperature(gaps: ArrayLike) -> float:
    """T that minimises the mean of -log sigmoid(gap / T), within [0.001, 1000].

    gaps: (P,). Where no pair is wrong the likelihood only rises as T falls, and where gaps are not above 0 on average
    as T rises: the answer is then a bound.
    """
    gap = _pairs(gaps)
    # likelihoods that differ by less than rounding would end the search somewhere
    if gap.mean() <= 0 or gap.min() >= 0:
        return float(np.exp(_LOG_TEMPERATURES[int(gap.mean() <= 0)]))

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
    """Calibration error, log loss and Brier score, as they are and at a cross-fitted temperature, with bins; JSON-able.

    gaps: (P,); groups: (P,) the query of every pair, or None. `temperature` is fitted on all pairs: it is the one to
    use on new data. The calibration errors have no interval; `ece_of_chance` is the error that perfect calibration
    would show here. Empty bins are left out.
    """
    gap = _pairs(gaps)
    cooled = cross_fit_temperature(gap, groups, seed=seed)

    def filled(values: Floats) -> list[dict[str, Any]]:
        bins = reliability_bins(*show_in_both_orders(values), num_bins=num_bins)
        return [found._asdict() for found in bins if found.count]

    report: dict[str, Any] = {
        "num_pairs": len(gap),
        "temperature": fit_temperature(gap),
        "ece_of_chance": error_of_chance(gap, num_bins=num_bins, seed=seed),
        "bins": filled(gap),
        "bins_at_temperature": filled(cooled),
    }
    for end, values in (("", gap), ("_at_temperature", cooled)):
        report[f"ece{end}"] = Interval(expected_calibration_error(values, num_bins=num_bins), None, None)._asdict()
        report[f"nll{end}"] = log_loss(values, groups)._asdict()
        report[f"brier{end}"] = brier_score(values, groups)._asdict()
    return report


def accuracy_by_margin(
    gaps: ArrayLike, groups: Sequence[Hashable] | None = None, *, num_bins: int = 8
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
        accuracy = share_interval(gap[own] > 0, groups=names)
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
