"""How far raters agree beyond chance: Krippendorff's alpha and weighted kappa.

Follows: Krippendorff 2011, "Computing Krippendorff's alpha-reliability", sections D and E; Cohen 1968, "Weighted
kappa".
Differs in: the intervals leave whole queries out. Both measures follow from tables that add up over queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmrlhf.metrics.intervals import Interval, jackknife_interval

Level = Literal["nominal", "ordinal", "interval"]
Floats = NDArray[np.float64]


def _alpha(coincidences: Floats, values: Floats, level: Level) -> Floats:
    """Alpha (B,) of coincidences (B, V, V); nan where only one value occurs in pairs."""
    totals = coincidences.sum(axis=2)
    distance = _DISTANCES[level](values, totals)
    observed = (coincidences * distance).sum(axis=(1, 2))
    expected = (totals[:, :, None] * totals[:, None, :] * distance).sum(axis=(1, 2))
    return _chance_corrected(observed * (totals.sum(axis=1) - 1), expected)


def _chance_corrected(observed: Floats, expected: Floats) -> Floats:
    """1 - observed / expected disagreement (B,), nan where none could be expected."""
    known = expected > 1e-12
    return np.where(known, 1 - observed / np.where(known, expected, 1.0), np.nan)


def _coincidences(table: Floats, values: Floats) -> Floats:
    """Pairs of values within items, (V, V), each item's pairs weighted 1 / (raters of the item - 1)."""
    counts = np.stack([(table == value).sum(axis=0) for value in values]) if len(values) else np.zeros((0, 0))
    counts = np.where(counts.sum(axis=0) >= 2, counts, 0).astype(np.float64)
    pairable = np.maximum(counts.sum(axis=0) - 1, 1)
    return (counts / pairable) @ counts.T - np.diag((counts / pairable).sum(axis=1))


def _nominal(values: Floats, totals: Floats) -> Floats:
    return (values[None, :, None] != values[None, None, :]).astype(np.float64)


def _interval(values: Floats, totals: Floats) -> Floats:
    return (values[None, :, None] - values[None, None, :]) ** 2


def _ordinal(values: Floats, totals: Floats) -> Floats:
    # Ranks by mid-position: the distance of two values is the number of ratings between their middles.
    middle = np.cumsum(totals, axis=1) - totals / 2
    return (middle[:, :, None] - middle[:, None, :]) ** 2


_DISTANCES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "nominal": _nominal,
    "ordinal": _ordinal,
    "interval": _interval,
}


def _contingency(first: Floats, second: Floats, levels: Floats) -> Floats:
    """Counts (V, V) of the items that one rater gave one level and the other another; items with nan are left out."""
    known = ~(np.isnan(first) | np.isnan(second))
    table = np.zeros((len(levels), len(levels)))
    np.add.at(table, (np.searchsorted(levels, first[known]), np.searchsorted(levels, second[known])), 1)
    return table


def _kappa(tables: Floats, levels: Floats) -> Floats:
    """Kappa with quadratic weights (B,) of counts (B, V, V); nan where both raters use one level throughout."""
    distance = (levels[:, None] - levels[None, :]) ** 2
    expected = (tables.sum(axis=2)[:, :, None] * tables.sum(axis=1)[:, None, :] * distance).sum(axis=(1, 2))
    return _chance_corrected((tables * distance).sum(axis=(1, 2)) * tables.sum(axis=(1, 2)), expected)


@dataclass(frozen=True)
class RaterAgreement:
    """How well raters agree: alpha, the mean quadratic kappa of every two (None where nothing can disagree), sizes."""

    alpha: Interval | None
    kappa: Interval | None
    num_raters: int
    num_items: int


def rater_agreement(ratings: Sequence[ArrayLike], *, level: Level = "ordinal") -> RaterAgreement:
    """Alpha, and the mean quadratic kappa of every two raters, with 95% intervals over queries.

    ratings: per query, levels (raters, K) of its K responses, nan where a rater skipped one; the queries may have
    different numbers of raters (alpha does not need to know who they are, kappa pairs them by their place).
    """
    tables = [np.asarray(table, dtype=np.float64) for table in ratings]
    values = _values(tables)
    coincidences = np.stack([_coincidences(table, values) for table in tables])
    raters = max(len(table) for table in tables)
    pairs = [(i, j) for i in range(raters) for j in range(i + 1, raters)]
    alpha = jackknife_interval([coincidences], lambda sums: _alpha(sums[0], values, level), below_one=True)
    return RaterAgreement(
        alpha=_known(alpha),
        kappa=_pair_kappa(tables, tables, pairs, values),
        num_raters=raters,
        num_items=int(sum(table.shape[1] for table in tables)),
    )


def agreement_between(ratings: Sequence[ArrayLike], others: Sequence[ArrayLike]) -> Interval | None:
    """Mean quadratic kappa of every rater with every one of another kind (humans, models), with its interval.

    ratings, others: per query, levels (raters, K) of the same responses. None where nothing can disagree.
    """
    tables, other_tables = ([np.asarray(table, dtype=np.float64) for table in side] for side in (ratings, others))
    values = _values([*tables, *other_tables])
    pairs = [(i, j) for i in range(max(map(len, tables))) for j in range(max(map(len, other_tables)))]
    return _pair_kappa(tables, other_tables, pairs, values)


def _values(tables: Sequence[Floats]) -> Floats:
    if not tables or any(table.ndim != 2 for table in tables):
        raise ValueError(f"ratings must be (raters, K) per query, got {[table.shape for table in tables][:3]}")
    flat = np.concatenate([table.ravel() for table in tables])
    return np.unique(flat[~np.isnan(flat)])


def _pair_kappa(
    tables: Sequence[Floats], others: Sequence[Floats], pairs: Sequence[tuple[int, int]], values: Floats
) -> Interval | None:
    def counts(i: int, j: int) -> Floats:
        empty = np.zeros((len(values), len(values)))
        return np.stack(
            [
                _contingency(one[i], other[j], values) if i < len(one) and j < len(other) else empty
                for one, other in zip(tables, others, strict=True)
            ]
        )

    def mean_kappa(sums: Sequence[Floats]) -> Floats:
        found = np.stack([_kappa(table, values) for table in sums])
        known = ~np.isnan(found)
        total = np.where(known, found, 0.0).sum(axis=0)
        return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)

    stacks = [counts(i, j) for i, j in pairs]
    return _known(jackknife_interval(stacks, mean_kappa, below_one=True)) if stacks else None


def _known(found: Interval) -> Interval | None:
    return None if np.isnan(found.mean) else found
