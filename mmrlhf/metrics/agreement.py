"""How far raters agree beyond chance: Krippendorff's alpha and weighted kappa.

Follows: Krippendorff 2011, "Computing Krippendorff's alpha-reliability", sections D and E; Cohen 1968, "Weighted
kappa".
Differs in: the intervals resample whole queries. Both measures follow from tables that add up over queries, so a
resample is a weighted sum of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Level = Literal["nominal", "ordinal", "interval"]
Floats = NDArray[np.float64]


def krippendorff_alpha(ratings: ArrayLike, *, level: Level = "ordinal") -> float:
    """Alpha of ratings (raters, items), nan where a rater skipped an item; 1 is perfect, 0 is chance.

    Items with fewer than two ratings take no part. Returns nan where nothing can disagree: no item with two ratings,
    or one value everywhere. Raises: ValueError for another shape or an unknown level.
    """
    table = np.asarray(ratings, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"ratings must be (raters, items), got shape {table.shape}")
    if level not in _DISTANCES:
        raise ValueError(f"level must be one of {', '.join(_DISTANCES)}, got {level}")
    values = np.unique(table[~np.isnan(table)])
    return _alpha(_coincidences(table, values), values, level)


def _alpha(coincidences: Floats, values: Floats, level: Level) -> float:
    totals = coincidences.sum(axis=1)
    if np.count_nonzero(totals) < 2:
        return float("nan")
    distance = _DISTANCES[level](values, totals)
    observed = (coincidences * distance).sum()
    expected = (np.outer(totals, totals) * distance).sum() / (totals.sum() - 1)
    return float(1 - observed / expected)


def _coincidences(table: Floats, values: Floats) -> Floats:
    """Pairs of values within items, (V, V), each item's pairs weighted 1 / (raters of the item - 1)."""
    counts = np.stack([(table == value).sum(axis=0) for value in values]) if len(values) else np.zeros((0, 0))
    counts = np.where(counts.sum(axis=0) >= 2, counts, 0).astype(np.float64)
    pairable = np.maximum(counts.sum(axis=0) - 1, 1)
    return (counts / pairable) @ counts.T - np.diag((counts / pairable).sum(axis=1))


def _nominal(values: Floats, totals: Floats) -> Floats:
    return (values[:, None] != values[None, :]).astype(np.float64)


def _interval(values: Floats, totals: Floats) -> Floats:
    return (values[:, None] - values[None, :]) ** 2


def _ordinal(values: Floats, totals: Floats) -> Floats:
    # Ranks by mid-position: the distance of two values is the number of ratings between their middles.
    middle = np.cumsum(totals) - totals / 2
    return (middle[:, None] - middle[None, :]) ** 2


_DISTANCES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "nominal": _nominal,
    "ordinal": _ordinal,
    "interval": _interval,
}


def weighted_kappa(a: ArrayLike, b: ArrayLike, *, weights: Literal["linear", "quadratic"] = "quadratic") -> float:
    """Cohen's kappa of two raters' levels (N,) each, with disagreement growing with the distance between levels.

    Levels are numbers and their distance is their difference. Returns nan where both raters use one and the same level
    throughout. Raises: ValueError where shapes differ or are not (N,), N >= 1, or the weights are unknown.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or len(first) == 0:
        raise ValueError(f"a and b must be (N,) with N >= 1, got shapes {first.shape} and {second.shape}")
    if weights not in ("linear", "quadratic"):
        raise ValueError(f"weights must be linear or quadratic, got {weights}")
    levels = np.unique(np.concatenate([first, second]))
    return _kappa(_contingency(first, second, levels), levels, weights)


def _contingency(first: Floats, second: Floats, levels: Floats) -> Floats:
    """Counts (V, V) of the items that one rater gave one level and the other another; items with nan are left out."""
    known = ~(np.isnan(first) | np.isnan(second))
    table = np.zeros((len(levels), len(levels)))
    np.add.at(table, (np.searchsorted(levels, first[known]), np.searchsorted(levels, second[known])), 1)
    return table


def _kappa(table: Floats, levels: Floats, weights: str) -> float:
    distance = np.abs(levels[:, None] - levels[None, :]) ** (1 if weights == "linear" else 2)
    expected = (np.outer(table.sum(axis=1), table.sum(axis=0)) * distance).sum()
    return float(1 - (table * distance).sum() * table.sum() / expected) if expected > 0 else float("nan")


def rater_agreement(
    ratings: Sequence[ArrayLike], *, level: Level = "ordinal", num_bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Alpha, and the mean quadratic kappa of every two raters, with 95% bootstrap intervals over queries; JSON-able.

    ratings: per query, levels (raters, K) of its K responses, nan where a rater skipped one; the queries may have
    different numbers of raters (alpha does not need to know who they are, kappa pairs them by their place).

    Returns: {"alpha", "kappa": {"mean", "low", "high"} or None where nothing can disagree, "num_raters", "num_items"}.
    """
    tables = [np.asarray(table, dtype=np.float64) for table in ratings]
    values = _values(tables)
    coincidences = np.stack([_coincidences(table, values) for table in tables])
    raters = max(len(table) for table in tables)
    pairs = [(i, j) for i in range(raters) for j in range(i + 1, raters)]
    return {
        "alpha": _resampled(
            [coincidences], lambda found: _alpha(found, values, level), num_bootstrap=num_bootstrap, seed=seed
        ),
        "kappa": _pair_kappa(tables, tables, pairs, values, num_bootstrap, seed),
        "num_raters": raters,
        "num_items": int(sum(table.shape[1] for table in tables)),
    }


def agreement_between(
    ratings: Sequence[ArrayLike], others: Sequence[ArrayLike], *, num_bootstrap: int = 1000, seed: int = 0
) -> dict[str, float] | None:
    """Mean quadratic kappa of every rater with every one of another kind (humans, models), with its interval.

    ratings, others: per query, levels (raters, K) of the same responses. None where nothing can disagree.
    """
    tables, other_tables = ([np.asarray(table, dtype=np.float64) for table in side] for side in (ratings, others))
    values = _values([*tables, *other_tables])
    pairs = [(i, j) for i in range(max(map(len, tables))) for j in range(max(map(len, other_tables)))]
    return _pair_kappa(tables, other_tables, pairs, values, num_bootstrap, seed)


def _values(tables: Sequence[Floats]) -> Floats:
    if not tables or any(table.ndim != 2 for table in tables):
        raise ValueError(f"ratings must be (raters, K) per query, got {[table.shape for table in tables][:3]}")
    flat = np.concatenate([table.ravel() for table in tables])
    return np.unique(flat[~np.isnan(flat)])


def _pair_kappa(
    tables: Sequence[Floats],
    others: Sequence[Floats],
    pairs: Sequence[tuple[int, int]],
    values: Floats,
    num_bootstrap: int,
    seed: int,
) -> dict[str, float] | None:
    def counts(i: int, j: int) -> Floats:
        empty = np.zeros((len(values), len(values)))
        return np.stack(
            [
                _contingency(one[i], other[j], values) if i < len(one) and j < len(other) else empty
                for one, other in zip(tables, others, strict=True)
            ]
        )

    stacks = [counts(i, j) for i, j in pairs]
    return _resampled(stacks, lambda found: _kappa(found, values, "quadratic"), num_bootstrap=num_bootstrap, seed=seed)


def _resampled(
    stacks: Sequence[Floats], measure: Callable[[Floats], float], *, num_bootstrap: int, seed: int
) -> dict[str, float] | None:
    """The mean over stacks (queries, V, V) of a measure of their sums, with a percentile interval over queries."""

    def mean(tables: Sequence[Floats]) -> float:
        known = [value for value in map(measure, tables) if not np.isnan(value)]
        return float(np.mean(known)) if known else float("nan")

    value = mean([stack.sum(axis=0) for stack in stacks])
    if not stacks or np.isnan(value):
        return None
    number = len(stacks[0])
    times = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=num_bootstrap)
    sums = [np.tensordot(times, stack, axes=1) for stack in stacks]
    found = np.array([mean([part[i] for part in sums]) for i in range(num_bootstrap)])
    low, high = np.quantile(found[~np.isnan(found)], (0.025, 0.975))
    return {"mean": value, "low": float(low), "high": float(high)}
