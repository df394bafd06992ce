"""Objectives on log-probabilities per token: SimPO and length-normalised DPO.

Follows: SimPO (arXiv 2405.14734), equation 6; length-normalised DPO as in Tulu 3 (arXiv 2411.15124), its preference
tuning objective: DPO's loss (arXiv 2305.18290, equation 7) with both log-ratios divided by their response's length.
Differs in: nothing; token counts of zero are read as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmrlhf.losses.objective import Objective, PairInputs, PairScale, given
from mmrlhf.ranges import NonNegative, Positive


def per_token(inputs: PairInputs, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
    """Divide sums over the chosen and rejected responses, (P,) each, by their token counts."""
    return (
        chosen / given(inputs.chosen_tokens, "chosen_tokens").clamp(min=1),
        rejected / given(inputs.rejected_tokens, "rejected_tokens").clamp(min=1),
    )


@dataclass(frozen=True, kw_only=True)
class SimPO(Objective):
    """loss = -log sigmoid(beta * (mean log p(chosen) - mean log p(rejected)) - target_margin), without a reference.

    Args:
        beta: > 0, per token and so about twenty times DPO's.
        target_margin: >= 0, gap that the implicit rewards have to reach (the paper's gamma).
    """

    beta: Positive = 2.0
    target_margin: NonNegative = 1.0

    needs_reference: ClassVar[bool] = False

    def scores(self, inputs: PairInputs) -> tuple[Tensor, Tensor]:
        return per_token(inputs, inputs.chosen_logprob.float(), inputs.rejected_logprob.float())

    def scale(self, inputs: PairInputs) -> PairScale:
        return PairScale.fill(inputs, b=self.beta, m=self.target_margin)


@dataclass(frozen=True, kw_only=True)
class LengthNormalisedDPO(Objective):
    """DPO on log-ratios divided by each response's token count; beta > 0 is per token."""

    beta: Positive = 5.0

    def scores(self, inputs: PairInputs) -> tuple[Tensor, Tensor]:
        return per_token(inputs, *super().scores(inputs))
