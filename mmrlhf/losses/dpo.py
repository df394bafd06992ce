"""DPO and its two label-noise versions: one beta for all pairs.

Follows: DPO (arXiv 2305.18290), equation 7; conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences &
relationship to IPO"), equation 3: (1 - e) l(beta z) + e l(-beta z); robust DPO (arXiv 2403.00409), its unbiased loss
under flips with probability e: [(1 - e) l(beta z) - e l(-beta z)] / (1 - 2 e), l(u) = -log sigmoid(u).
Differs in: nothing; label_smoothing is the probability that a label is wrong, and 0 is plain DPO (the released MM-RLHF
code has it the other way round).
"""

from __future__ import annotations

from dataclasses import dataclass

from mmrlhf.losses.objective import Objective, PairInputs, PairScale
from mmrlhf.ranges import ShareBelowHalf


@dataclass(frozen=True, kw_only=True)
class DPO(Objective):
    """loss = -log sigmoid(beta * z)."""


@dataclass(frozen=True, kw_only=True)
class ConservativeDPO(Objective):
    """Cross-entropy against the soft label 1 - label_smoothing: q = 1 - label_smoothing.

    Args:
        label_smoothing: probability that a label is wrong, in [0, 0.5); 0 is DPO.
    """

    label_smoothing: ShareBelowHalf = 0.1

    def scale(self, inputs: PairInputs) -> PairScale:
        return PairScale.fill(inputs, b=self.beta, q=1 - self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class RobustDPO(Objective):
    """Unbiased under labels flipped with probability label_smoothing: q = (1 - e) / (1 - 2 e), so 1 - q is negative.

    Args:
        label_smoothing: e, in [0, 0.5); 0 is DPO.
    """

    label_smoothing: ShareBelowHalf = 0.1

    def scale(self, inputs: PairInputs) -> PairScale:
        return PairScale.fill(inputs, b=self.beta, q=(1 - self.label_smoothing) / (1 - 2 * self.label_smoothing))
