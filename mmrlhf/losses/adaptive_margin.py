"""AMaPO: pairs that the policy separates less than the step's average get a target margin, the others none.

Follows: AMaPO (arXiv 2511.09385), its instance-wise margin from a z-score and an exponential; as in the authors' code
(Shiroha-Offical/AMaPO, `amapo_trainer.py`): on log-probabilities per token and without a reference,
gamma_i = beta exp(((mean - z_i) / std) mean) where z_i < mean, else 0, with the mean and the standard deviation of z
over the step; the loss is -log sigmoid(beta z_i - gamma_i).
Differs in: one pair alone has no standard deviation and gets no margin; exponents stop at 80, where float32 ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmrlhf.losses.length_normalised import per_token
from mmrlhf.losses.objective import Objective, PairInputs, PairScale
from mmrlhf.ranges import Positive

LARGEST_EXPONENT = 80.0


@dataclass(frozen=True, kw_only=True)
class AMaPO(Objective):
    """-log sigmoid(beta z - gamma_i) with z the gap of the log-probabilities per token; beta > 0 is per token."""

    beta: Positive = 2.0

    needs_reference: ClassVar[bool] = False

    @property
    def uses_call_statistics(self) -> bool:
        return True

    def scores(self, inputs: PairInputs) -> tuple[Tensor, Tensor]:
        return per_token(inputs, inputs.chosen_logprob.float(), inputs.rejected_logprob.float())

    def scale(self, inputs: PairInputs) -> PairScale:
        z = self.gap(inputs)
        if len(z) < 2:
            return PairScale.fill(inputs, b=self.beta)
        # in float32 the mean of equal gaps may round to more than they are, and all would be behind it
        gap = z.double()
        mean = gap.mean()
        behind = (mean - gap) / gap.std().clamp(min=torch.finfo(gap.dtype).tiny)
        margin = self.beta * (behind * mean).clamp(max=LARGEST_EXPONENT).exp()
        return PairScale.fill(inputs, b=self.beta, m=torch.where(gap < mean, margin, 0.0).float())
