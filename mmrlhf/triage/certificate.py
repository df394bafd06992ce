"""The largest share of queries that a model may label so that people would disagree with it rarely enough.

Follows: Clopper and Pearson 1934 for the bound of one threshold; fixed-sequence testing (Maurer, Hothorn and Lehmacher
1995; for thresholds on a model: Angelopoulos et al. 2021, "Learn then Test", arXiv 2110.01052) for several of them:
thresholds are tried in an order that no label that certifies has a say in (the lowest expected bound first, by the
model's calibrated uncertainty), each at the whole level, and the first that fails ends it. The chance that a certified
share exceeds the limit at all is then at most 1 - level, without a correction for the number of thresholds.
Differs in: disagreement is a share of pairs, not a yes or no. Each audited query throws one coin with that share as its
probability (equal to drawing one of its pairs), so that the counts are binomial and the bound is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

from mmrlhf.summaries.triages import TestedShare

SHARES = tuple(round(0.05 * step, 2) for step in range(1, 21))


@dataclass(frozen=True)
class Certificate:
    """What was tested in turn, and what came of it; `threshold` None and share 0 where nothing is certified."""

    tested: tuple[TestedShare, ...]

    @property
    def best(self) -> TestedShare | None:
        """The largest share that passed."""
        return max((each for each in self.tested if each.passed), key=lambda each: each.share, default=None)

    @property
    def share(self) -> float:
        """Of the pool, that may be labelled without a person."""
        return self.best.share if self.best else 0.0

    @property
    def threshold(self) -> float | None:
        """Uncertainty up to which queries may be."""
        return self.best.threshold if self.best else None


def upper_bound(failures: int, trials: int, level: float = 0.95) -> float:
    """Clopper and Pearson's one-sided upper bound of a probability; 1 without trials."""
    if failures >= trials:
        return 1.0
    return float(beta.ppf(level, failures + 1, trials - failures))


def fewest_trials(limit: float, level: float = 0.95) -> int:
    """How many queries must agree without exception before a limit can be certified at all."""
    if not 0 < limit < 1:
        return 1
    needed = int(np.ceil(np.log1p(-level) / np.log1p(-limit)))
    # the quotient of what is a whole number may come out just above it
    return needed - 1 if needed > 1 and upper_bound(0, needed - 1, level) <= limit else needed


def certify(
    pool: ArrayLike,
    audited: ArrayLike,
    coins: ArrayLike,
    *,
    limit: float,
    level: float = 0.95,
    least: int = 20,
    expected: ArrayLike | None = None,
    shares: Sequence[float] = SHARES,
) -> Certificate:
    """Test shares of the pool in turn, the most promising first, until one cannot be certified.

    Args:
        pool: (N,) uncertainties of all queries that a model might label, the audited ones among them.
        audited: (n,) those of the audited queries, a random sample of the pool.
        coins: (n,) bool, whether people disagree.
        limit: disagreement that is allowed.
        level: confidence.
        least: audited queries that a tested share holds at least.
        expected: (n,) disagreement to expect of them, from other queries; None: their uncertainty.
        shares: of the pool, that may be tested.

    Raises: ValueError where lengths differ.
    """
    everything, own, wrong = np.sort(np.asarray(pool, float)), np.asarray(audited, float), np.asarray(coins, np.bool_)
    likely = own if expected is None else np.asarray(expected, float)
    if not own.shape == wrong.shape == likely.shape or own.ndim != 1:
        raise ValueError(f"one coin for each audited query, got {wrong.shape} for {own.shape}")
    places = {max(round(share * len(everything)), 1) - 1 for share in shares} if len(everything) else set()
    thresholds = {float(everything[place]) for place in places}
    # neither the limit nor a coin has a say in the order: so a wider limit certifies no less, and the level is kept
    order = sorted((_promise(likely[own <= each], level), -each) for each in thresholds if (own <= each).sum() >= least)
    tested: list[TestedShare] = []
    for _, negative in order:
        inside = own <= -negative
        trials, failures = int(inside.sum()), int(wrong[inside].sum())
        bound = upper_bound(failures, trials, level)
        held = float((everything <= -negative).mean())  # ties may take in more than the share
        tested.append(TestedShare(held, -negative, trials, failures, bound, bound <= limit))
        if bound > limit:
            break
    return Certificate(tuple(tested))


def _promise(expected: NDArray[np.float64], level: float) -> float:
    """The upper bound that is to be expected where queries disagree as often as they are expected to."""
    failures, trials = float(np.clip(expected, 0, 1).sum()), len(expected)
    return float(beta.ppf(level, failures + 1, trials - failures)) if failures < trials else 1.0
