"""AOT: the distribution of the policy's gaps over a step should lie above that of the reference's, pair by pair or not.

Follows: alignment via optimal transport (arXiv 2406.05882), the paired form with the logistic link: the policy's gaps
log p(chosen) - log p(rejected) and the reference's are sorted, each by itself, and compared rank by rank.
Differs in: nothing. In the frame it is DPO with an offset: a pair's gap is compared with the reference's gap of the
same rank, so m = beta (reference's gap of that rank - reference's gap of the pair).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmrlhf.losses.objective import Objective, PairInputs, PairScale, given
from mmrlhf.ranges import ShareBelowHalf


@dataclass(frozen=True, kw_only=True)
class AOT(Objective):
    """DPO between sorted gaps; for one pair, and where both models order the pairs alike, it is DPO.

    Args:
        label_smoothing: probability that a label is wrong, in [0, 0.5).
    """

    label_smoothing: ShareBelowHalf = 0.0

    @property
    def uses_call_statistics(self) -> bool:
        return True

    def scale(self, inputs: PairInputs) -> PairScale:
        policy = inputs.chosen_logprob.float() - inputs.rejected_logprob.float()
        reference = given(inputs.reference_chosen, "reference_chosen").float()
        reference = reference - given(inputs.reference_rejected, "reference_rejected").float()
        same_rank = torch.empty_like(reference)
        same_rank[policy.argsort(stable=True)] = reference.sort().values
        return PairScale.fill(inputs, b=self.beta, m=self.beta * (same_rank - reference), q=1 - self.label_smoothing)
