"""What a scorer proposes for a query, how unsure it is of that, and how far people disagree with it.

A pair of answers with rewards r and s is ordered rightly with probability sigmoid(|r - s| / T) (Bradley and Terry 1952;
T by Guo et al. 2017, fitted on queries that people ranked without seeing the proposal). A query's uncertainty is the
share of its pairs that are expected to be ordered wrongly.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from mmrlhf.annotation.pair_orders import Ranks, orders, pair_agreement
from mmrlhf.metrics.calibration import fit_temperature


@dataclass(frozen=True)
class Proposal:
    """Rewards (K,) of a query's answers; hashes (K,) are the answers'."""

    key: str
    category: str
    hashes: tuple[str, ...]
    rewards: tuple[float, ...]

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranking (K,) that it proposes: 1 is best, equal rewards share a rank."""
        _, place = np.unique(-np.array(self.rewards), return_inverse=True)
        return tuple(int(each) + 1 for each in place)

    def uncertainty(self, temperature: float) -> float:
        """The share of pairs that are expected to be wrong, in [0, 1/2]."""
        gaps = [abs(one - other) for one, other in itertools.combinations(self.rewards, 2)]
        return float(expit(-np.array(gaps) / temperature).mean())

    def disagreement(self, people: Ranks) -> float | None:
        """The share of pairs that people order otherwise; a tie on one side counts half; None without a pair."""
        found = pair_agreement(self.ranks, people)
        return 1 - sum(found) / len(found) if found else None


def fitted_temperature(proposals: Sequence[Proposal], people: Sequence[Ranks]) -> float:
    """T that makes the proposals' probabilities of what people prefer most likely; pairs that people tie say nothing.

    Without any pair it is the median distance of two rewards: a scale, and no calibration.
    """
    gaps = []
    for proposal, ranks in zip(proposals, people, strict=True):
        found = orders(ranks)
        for one, other in itertools.combinations(range(len(ranks)), 2):
            if found[one, other] in (1, -1):
                gaps.append(found[one, other] * (proposal.rewards[one] - proposal.rewards[other]))
    return fit_temperature(gaps) if gaps else reward_scale(proposals)


def usual_excess(proposals: Sequence[Proposal], people: Sequence[Ranks], temperature: float) -> float:
    """How much more often people disagree than the uncertainties say, on average: ties, and what T does not catch."""
    apart = [
        found - proposal.uncertainty(temperature)
        for proposal, ranks in zip(proposals, people, strict=True)
        if (found := proposal.disagreement(ranks)) is not None
    ]
    return float(np.mean(apart)) if apart else 0.0


def reward_scale(proposals: Sequence[Proposal]) -> float:
    """The median distance of two rewards of a query, or 1 where all are alike."""
    gaps = [abs(a - b) for proposal in proposals for a, b in itertools.combinations(proposal.rewards, 2)]
    return float(np.median(gaps)) or 1.0 if gaps else 1.0


def place_of(*parts: object) -> float:
    """A number in [0, 1) that looks drawn, and is the same for the same parts."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", errors="surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
