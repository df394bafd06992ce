"""Methods compared at one distance from the reference, where each was trained with a few strengths only.

Follows: Gao et al. 2022, "Scaling laws for reward model overoptimization" (arXiv 2210.10760), for quality as a function
of the square root of the KL; cross-fitting (Chernozhukov et al. 2018) so that the queries that tune do not measure.
Differs in: nothing is fitted; a curve goes straight from point to point, begins at the reference, never beyond its end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmrlhf.metrics.intervals import Interval, jackknife_interval

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Points:
    """What one method's policies answer: a column for each strength, the first column the reference itself.

    Args:
        queries: Q labels.
        kl: (Q, J) estimates of the distance, each query's mean over its answers; 0 for the reference.
        quality: (Q, J) likewise.
    """

    queries: Sequence[str]
    kl: Floats
    quality: Floats

    def __post_init__(self) -> None:
        if self.kl.shape != self.quality.shape or self.kl.ndim != 2 or len(self.kl) != len(self.queries):
            raise ValueError(f"(Q, J) twice for {len(self.queries)} queries, got {self.kl.shape}, {self.quality.shape}")

    def of(self, queries: Sequence[str]) -> Points:
        """The same of some of its queries, in their order."""
        place = {query: number for number, query in enumerate(self.queries)}
        rows = [place[query] for query in queries]
        return Points(queries, self.kl[rows], self.quality[rows])

    @property
    def reach(self) -> float:
        """The largest distance that both halves of the queries find on the curve."""
        half = halves(self.queries)
        means = [self.kl[half == number].mean(axis=0) for number in (0, 1) if (half == number).any()]
        return float(np.min([mean.max() for mean in means]))


def halves(queries: Sequence[str]) -> NDArray[np.int64]:
    """0 or 1 (Q,) for each query: the half that it belongs to, which follows from its label alone."""
    return np.array([hashlib.sha256(query.encode()).digest()[0] & 1 for query in queries], dtype=np.int64)


def on_curve(kl: Floats, quality: Floats, distance: float) -> Floats:
    """Quality (...) at a distance, on the lines through points (..., J) in order of KL; nan beyond the furthest.

    Lines are straight over the square root of the KL. Points nearer than 0, as noisy estimates may be, lie at 0.
    """
    root = np.sqrt(np.maximum(kl, 0.0))
    order = np.argsort(root, axis=-1, kind="stable")
    x, y = np.take_along_axis(root, order, -1), np.take_along_axis(quality, order, -1)
    wanted = np.sqrt(distance)
    right = np.clip((x < wanted).sum(axis=-1, keepdims=True), 1, x.shape[-1] - 1)
    (x0, x1), (y0, y1) = ([np.take_along_axis(each, right + step, -1)[..., 0] for step in (-1, 0)] for each in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(x1 > x0, (wanted - x0) / (x1 - x0), 1.0)
    return np.where((x[..., -1] >= wanted) & (x[..., 0] <= wanted), y0 + np.clip(share, 0.0, 1.0) * (y1 - y0), np.nan)


def quality_at(points: Points, distance: float) -> Interval:
    """A method's quality where its KL is `distance`: tuned on one half of the queries, measured on the other, and back.

    The interval is a jackknife over queries, tuning included; nan where the curve does not go so far.
    """
    return _jackknifed([points], distance)


def lead_at(one: Points, other: Points, distance: float) -> Interval:
    """How much better one method is than another where both are at `distance`, on the queries that both have."""
    theirs = set(other.queries)
    both = [query for query in one.queries if query in theirs]
    return _jackknifed([one.of(both), other.of(both)], distance)


def _jackknifed(arms: Sequence[Points], distance: float) -> Interval:
    queries = arms[0].queries
    side = np.eye(2)[halves(queries)]  # (Q, 2)

    def rows(part: slice) -> list[Floats]:
        counts = side[part]
        tables = [counts[:, :, None] * each[part, None, :] for arm in arms for each in (arm.kl, arm.quality)]
        return [counts, *tables]

    def difference(sums: Sequence[Floats]) -> Floats:
        counts, tables = sums[0][:, :, None], sums[1:]
        with np.errstate(invalid="ignore"):
            means = [table / counts for table in tables]
        found = [_crossed(kl, quality, distance) for kl, quality in zip(means[::2], means[1::2], strict=True)]
        return found[0] - found[1] if len(found) == 2 else found[0]

    return jackknife_interval(rows, len(queries), difference)


def _crossed(kl: Floats, quality: Floats, distance: float) -> Floats:
    """Mean (B,) of what each half measures where the other half's KL is the distance; (B, 2, J) each."""
    return (on_curve(kl[:, 0], quality[:, 1], distance) + on_curve(kl[:, 1], quality[:, 0], distance)) / 2
