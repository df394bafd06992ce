"""How far raters agree beyond chance: Krippendorff's alpha and weighted kappa.

Follows: Krippendorff 2011, "Computing Krippendorff's alpha-reliability", sections D and E; Cohen 1968, "Weighted
kappa".
Differs in: the intervals leave whole queries out. Both measures follow from sums over queries: alpha from how often
each value and each pair of values occurs, kappa with quadratic weights from six moments. So no table has a cell for
every two values, of which ratings like 3.27 have many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from mmrlhf.metrics.intervals import ROUNDING, Interval, jackknife_interval

Level = Literal["nominal", "ordinal", "interval"]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


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
    Raises: ValueError for ratings that are no such tables, or not finite.
    """
    tables = _scaled(ratings)
    raters = max(len(table) for table in tables)
    return RaterAgreement(
        alpha=_alpha(tables, level),
        kappa=_mean_kappa(tables, tables, ~np.tri(raters, dtype=np.bool_)) if raters > 1 else None,
        num_raters=raters,
        num_items=int(sum(table.shape[1] for table in tables)),
    )


def agreement_between(ratings: Sequence[ArrayLike], others: Sequence[ArrayLike]) -> Interval | None:
    """Mean quadratic kappa of every rater with every one of another kind (humans, models), with its interval.

    ratings, others: per query, levels (raters, K) of the same responses. None where nothing can disagree.
    Raises: ValueError as `rater_agreement`.
    """
    both = _scaled([*ratings, *others])
    tables, other_tables = both[: len(ratings)], both[len(ratings) :]
    sizes = max(map(len, tables)), max(map(len, other_tables))
    return _mean_kappa(tables, other_tables, np.ones(sizes, dtype=np.bool_))


def _scaled(ratings: Sequence[ArrayLike]) -> list[Floats]:
    """Tables of ratings, moved and stretched to [-1/2, 1/2], which no measure here depends on."""
    tables = [np.asarray(table, dtype=np.float64) for table in ratings]
    if not tables or any(table.ndim != 2 for table in tables):
        raise ValueError(f"ratings must be (raters, K) per query, got {[table.shape for table in tables][:3]}")
    flat = np.concatenate([table.ravel() for table in tables])
    known = flat[~np.isnan(flat)]
    if np.isinf(known).any():
        raise ValueError("ratings must be finite, or nan where there is none")
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    # halves, because the largest numbers' distance is too large for a number
    middle, span = low / 2 + high / 2, high / 2 - low / 2
    return [(table - middle) / span / 2 if span > 0 else np.where(np.isnan(table), table, 0.0) for table in tables]


def _alpha(tables: Sequence[Floats], level: Level) -> Interval | None:
    """Alpha, from the sums over queries of how often each value, and each two of them, occur in items."""
    flat = np.concatenate([table.ravel() for table in tables])
    values = np.unique(flat[~np.isnan(flat)])
    parts = [_pairs_of_values(table, values) for table in tables]
    codes, place = np.unique(np.concatenate([part[0] for part in parts]), return_inverse=True)
    first, second = np.divmod(codes, max(1, len(values)))
    query = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
    weights = np.concatenate([part[1] for part in parts])
    pairs = csr_array((weights, (query, place)), shape=(len(parts), len(codes)))
    counts = csr_array((weights, (query, first[place])), shape=(len(parts), len(values)))

    def measure(sums: Sequence[Floats]) -> Floats:
        together, totals = sums
        number = totals.sum(axis=1)
        scale = np.where(number > 0, number, 1.0)
        if level == "nominal":
            observed = (together * (first != second)).sum(axis=1)
            expected = number**2 - (totals**2).sum(axis=1)
        else:
            at = _mid_ranks(totals, scale) if level == "ordinal" else np.broadcast_to(values, totals.shape)
            observed = (together * (at[:, first] - at[:, second]) ** 2).sum(axis=1)
            mean = (totals * at).sum(axis=1, keepdims=True) / scale[:, None]
            expected = 2 * scale * (totals * (at - mean) ** 2).sum(axis=1)
        return _chance_corrected(observed * (number - 1) / scale**2, expected / scale**2)

    return _known(
        jackknife_interval(
            lambda part: [pairs[part].toarray(), counts[part].toarray()], len(parts), measure, below_one=True
        )
    )


def _pairs_of_values(table: Floats, values: Floats) -> tuple[Integers, Floats]:
    """Codes (first value * V + second value) of all pairs of ratings of one item, and their weights 1 / (raters - 1).

    Both orders of each pair; the weights of a value's pairs add up to how often it occurs in pairs.
    """
    codes, weights = [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
    for column in table.T:
        own, counts = np.unique(column[~np.isnan(column)], return_counts=True)
        if counts.sum() < 2:
            continue
        place = np.searchsorted(values, own)
        codes.append((place[:, None] * len(values) + place[None, :]).ravel())
        weights.append(((np.outer(counts, counts) - np.diag(counts)) / (counts.sum() - 1)).ravel())
    return np.concatenate(codes), np.concatenate(weights)


def _mid_ranks(totals: Floats, number: Floats) -> Floats:
    """Ranks by mid-position, as shares of all ratings; two values differ by what lies between their middles."""
    return (np.cumsum(totals, axis=1) - totals / 2) / number[:, None]


def _mean_kappa(tables: Sequence[Floats], others: Sequence[Floats], compared: NDArray[np.bool_]) -> Interval | None:
    """The mean kappa of the raters (R) with those (S) that they are compared with, (R, S)."""

    def moments(part: slice) -> list[Floats]:
        pairs = zip(tables[part], others[part], strict=True)
        return [np.stack([_moments(one, other, compared.shape) for one, other in pairs])]

    def mean_kappa(sums: Sequence[Floats]) -> Floats:
        found = np.where(compared, _kappa(sums[0]), np.nan)
        known = ~np.isnan(found)
        total = np.where(known, found, 0.0).sum(axis=(1, 2))
        return np.where(known.any(axis=(1, 2)), total / np.maximum(known.sum(axis=(1, 2)), 1), np.nan)

    return _known(jackknife_interval(moments, len(tables), mean_kappa, below_one=True))


def _moments(one: Floats, other: Floats, shape: tuple[int, ...]) -> Floats:
    """Sums (R, S, 6) over the items that both raters of a pair rated: 1, a, b, a^2, b^2, (a - b)^2."""
    known, other_known = (~np.isnan(side) for side in (one, other))
    a, b = np.where(known, one, 0.0), np.where(other_known, other, 0.0)
    mine, theirs = known.astype(np.float64), other_known.astype(np.float64)
    apart = ((a[:, None] - b[None]) ** 2 * mine[:, None] * theirs[None]).sum(axis=-1)
    sides = (mine @ theirs.T, a @ theirs.T, mine @ b.T, a**2 @ theirs.T, mine @ (b**2).T, apart)
    found = np.zeros((*shape, 6))
    found[: len(one), : len(other)] = np.stack(sides, axis=-1)
    return found


def _kappa(sums: Floats) -> Floats:
    """Kappa with quadratic weights (...) of moments (..., 6); nan where both raters use one level throughout."""
    number, a, b, squares, other_squares, apart = np.moveaxis(sums, -1, 0)
    scale = np.where(number > 0, number, 1.0)
    expected = (squares + other_squares - 2 * a * b / scale) / scale
    return _chance_corrected(apart / scale, expected)


def _chance_corrected(observed: Floats, expected: Floats) -> Floats:
    """1 - observed / expected disagreement, nan where none could be expected but by rounding."""
    known = expected > ROUNDING
    return np.where(known, 1 - observed / np.where(known, expected, 1.0), np.nan)


def _known(found: Interval) -> Interval | None:
    return None if np.isnan(found.mean) else found
