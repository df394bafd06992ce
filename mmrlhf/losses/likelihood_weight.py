"""WPO: pairs that the policy itself would write count more.

Follows: WPO (arXiv 2406.11827), equation 2: weight = w(chosen) * w(rejected), w(y) = exp(mean token log-probability).
Differs in: without the paper's weight alignment, which divides each token's probability by the expected probability of
a sampled token and so needs whole distributions and not only the log-probabilities of the labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmrlhf.losses.objective import Objective, PairInputs, PairScale, given


@dataclass(frozen=True, kw_only=True)
class WPO(Objective):
    """DPO with a = exp(mean log-probability of chosen + of rejected), in (0, 1] and without gradient."""

    def scale(self, inputs: PairInputs) -> PairScale:
        chosen_tokens = given(inputs.chosen_tokens, "chosen_tokens").clamp(min=1)
        rejected_tokens = given(inputs.rejected_tokens, "rejected_tokens").clamp(min=1)
        mean = inputs.chosen_logprob.float() / chosen_tokens + inputs.rejected_logprob.float() / rejected_tokens
        return PairScale.fill(inputs, b=self.beta, a=torch.exp(mean))
