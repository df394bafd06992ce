"""MPO: preference, absolute quality and generation in one loss.

Follows: MPO (arXiv 2411.10442), its training objective L = w_p L_p + w_q L_q + w_g L_g: the preference loss L_p is
DPO's (arXiv 2305.18290, equation 7), the quality loss L_q is BCO's, -log sigmoid(r_chosen - shift) -
log sigmoid(-(r_rejected - shift)) with r = beta * log-ratio, and the generation loss L_g the chosen response's NLL per
token; the weights are 0.8, 0.2, 1.
Differs in: BCO's reward shift is a setting and not a running mean of rewards, so that no state has to be saved; 0 is
what TRL's bco_pair uses.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmrlhf.losses.links import logistic
from mmrlhf.losses.objective import Objective, PairInputs, PairScale
from mmrlhf.ranges import Finite, NonNegative


@dataclass(frozen=True, kw_only=True)
class MPO(Objective):
    """a = preference_weight on DPO's term, plus quality_weight * [l(r_chosen - shift) + l(-(r_rejected - shift))].

    r is the implicit reward beta * log-ratio and l the logistic link; sft_weight is the paper's w_g.

    Args:
        preference_weight: >= 0, weight of DPO's term.
        quality_weight: >= 0, weight of BCO's term.
        shift: implicit reward that separates good from bad responses.
    """

    preference_weight: NonNegative = 0.8
    quality_weight: NonNegative = 0.2
    shift: Finite = 0.0
    sft_weight: NonNegative = 1.0

    def scale(self, inputs: PairInputs) -> PairScale:
        return PairScale.fill(inputs, b=self.beta, a=self.preference_weight)

    def pair_loss(self, chosen: Tensor, rejected: Tensor, scale: PairScale) -> Tensor:
        preference = super().pair_loss(chosen, rejected, scale)
        quality = logistic(scale.b * chosen - self.shift) + logistic(self.shift - scale.b * rejected)
        return preference + self.quality_weight * quality
