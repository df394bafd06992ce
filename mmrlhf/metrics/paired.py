"""Two models on the same items: is the difference real, how small a one would be seen, how large is it beside others.

Follows: Fisher 1935 for the sign-flip test; Holm 1979, "A simple sequentially rejective multiple test procedure"; Cohen
1988 for the standardised difference (by the pooled spread of both models' scores) and for power.
Differs in: items that share a picture change together, so whole clusters are flipped, and whole clusters make the
spread (`mmrlhf.metrics.intervals.paired_difference` has the interval).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, norm, t

from mmrlhf.metrics.intervals import Interval, group_sums, mean_interval

Floats = NDArray[np.float64]
# up to so many clusters that differ, all of their signs are tried
_EXACT = 14
# signs that are drawn at once
_BLOCK = 4_000_000


def sign_flip_p(
    differences: ArrayLike, groups: Sequence[Hashable] | None = None, *, draws: int = 20_000, seed: int = 0
) -> float:
    """Two-sided p of "no cluster favours either model": how often random signs give a sum at least as far from 0.

    Exact where all clusters that differ differ by as much (McNemar's exact test, for answers that are right or wrong)
    or where they are few; drawn otherwise, and then never below 1 / (1 + draws).

    Args:
        differences: (N,) after minus before.
        groups: (N,) labels of clusters; None: every item is its own.
        draws: random signs, where they are drawn.
        seed: draws them.

    Raises: ValueError where differences are empty or not (N,).
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"differences must be (N,) with N >= 1, got shape {values.shape}")
    sums, _ = group_sums(values, groups)
    scale = float(np.abs(sums).max())
    sums = sums[np.abs(sums) > 1e-12 * scale] if scale > 0 else sums[:0]
    if len(sums) == 0:
        return 1.0
    size = np.abs(sums)
    if np.ptp(size) <= 1e-9 * scale:
        return float(binomtest(int((sums > 0).sum()), len(sums)).pvalue)
    reached = abs(float(sums.sum())) - 1e-9 * scale
    if len(sums) <= _EXACT:
        signs = 1.0 - 2.0 * ((np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1)
        return float((np.abs(signs @ size) >= reached).mean())
    rng, block, farther = np.random.default_rng(seed), max(1, _BLOCK // len(sums)), 0
    for start in range(0, draws, block):
        flips = rng.integers(0, 2, (min(block, draws - start), len(sums)), dtype=np.int8)
        farther += int((np.abs(size.sum() - 2.0 * (flips @ size)) >= reached).sum())
    return (1 + farther) / (1 + draws)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p of every test of a table, in its order: below .05, it stands against all of them."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def standard_error(found: Interval, clusters: int, *, level: float = 0.95) -> float | None:
    """The standard error behind a Student interval over so many clusters; None where it has no ends."""
    if found.high is None or clusters < 2:
        return None
    return (found.high - found.mean) / float(t.ppf((1 + level) / 2, clusters - 1))


def detectable(error: float, *, power: float = 0.8, level: float = 0.95) -> float:
    """The smallest difference that a two-sided test at this standard error finds with this power."""
    return (float(norm.ppf((1 + level) / 2)) + float(norm.ppf(power))) * error


def planned_detectable(items: int, *, changing: float = 0.1, per_cluster: float = 1.0) -> float:
    """The same before anything is measured, for a share of right answers.

    Args:
        items: documents.
        changing: share of them whose answer turns from right to wrong or back.
        per_cluster: documents of one picture; taken to change together, the worst that can be.
    """
    return detectable((changing * per_cluster / items) ** 0.5)


def standardised_difference(
    before: ArrayLike, after: ArrayLike, *, groups: Sequence[Hashable] | None = None
) -> Interval | None:
    """After minus before in units of the spread of scores, so that benchmarks of any scale can stand in one summary.

    The unit is the root of the mean of both models' variances over items; the interval takes it as known. None where
    neither model's scores differ between items.
    """
    old, new = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    unit = float(np.sqrt((old.var() + new.var()) / 2))
    return mean_interval((new - old) / unit, groups=groups) if unit > 1e-12 else None


def mean_of_independent(found: Sequence[tuple[Interval, int]], *, level: float = 0.95) -> Interval | None:
    """The mean of numbers that were measured on different items, each counting once, with a normal interval.

    Args:
        found: every number with the clusters behind it.

    Returns: Interval, without ends where one of them has none; None without any.
    """
    if not found:
        return None
    mean = float(np.mean([interval.mean for interval, _ in found]))
    errors = [standard_error(interval, clusters, level=level) for interval, clusters in found]
    if any(error is None for error in errors):
        return Interval(mean, None, None)
    half = float(norm.ppf((1 + level) / 2)) * sum(e**2 for e in errors if e is not None) ** 0.5 / len(errors)
    return Interval(mean, mean - half, mean + half)
