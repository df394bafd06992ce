"""Uni-DPO: weights for clear pairs and for pairs that the policy has not learned, and a supervised term where needed.

Follows: Uni-DPO (arXiv 2506.10054v3), its objective with a quality weight sigmoid(eta delta), a performance weight
(1 - sigmoid(gap - tau))^gamma, and the calibrated NLL of chosen responses that have become less likely than under the
reference and whose score is good. The gap is, as in the authors' code (pspdada/Uni-DPO, `trainer.py`), beta times the
policy's own log-ratio of the two responses, without the reference; log-probabilities are per token.
Differs in: no gradient flows through the weights (there it flows through the performance weight). Less likely is by
more than 0.01 nats, so that rounding has no say. What score is good depends on the reward model; by default every
chosen response's is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmrlhf.losses.call_beta import RESOLUTION
from mmrlhf.losses.length_normalised import per_token
from mmrlhf.losses.objective import Objective, PairInputs, PairScale, given, token_nll
from mmrlhf.ranges import Finite, NonNegative, Positive


@dataclass(frozen=True, kw_only=True)
class UniDPO(Objective):
    """DPO on log-ratios per token with a = sigmoid(eta delta) * (1 - sigmoid(beta gap - tau))^gamma.

    Args:
        beta: > 0, per token where `average`.
        eta: >= 0, how strongly the margin weighs; 0 gives every pair 1/2.
        tau: gap up to which a pair counts as not yet learned.
        gamma: >= 0, how strongly learned pairs lose weight; 0 leaves the quality weight alone.
        average: divide log-probabilities by token counts.
        good_reward: the supervised term takes chosen responses with at least this reward; None takes all.
        sft_weight: of that term (the paper's lambda).
    """

    beta: Positive = 2.0
    eta: NonNegative = 0.7
    tau: Finite = 2.0
    gamma: NonNegative = 3.0
    average: bool = True
    good_reward: Finite | None = None
    sft_weight: NonNegative = 0.2

    needs_margin: ClassVar[bool] = True

    def scores(self, inputs: PairInputs) -> tuple[Tensor, Tensor]:
        return self._normalised(inputs, *super().scores(inputs))

    def scale(self, inputs: PairInputs) -> PairScale:
        chosen, rejected = self._normalised(inputs, inputs.chosen_logprob.float(), inputs.rejected_logprob.float())
        unlearned = torch.sigmoid(self.tau - self.beta * (chosen - rejected))
        quality = torch.sigmoid(self.eta * given(inputs.margin, "margin").float())
        return PairScale.fill(inputs, b=self.beta, a=quality * unlearned**self.gamma)

    def sft_term(self, inputs: PairInputs) -> Tensor:
        """The chosen response's NLL per token (P,) where it is less likely than under the reference, and good."""
        reference = given(inputs.reference_chosen, "reference_chosen").float()
        # at the first step the policy is the reference, and which response is less likely is rounding
        fallen = reference - inputs.chosen_logprob.float() > RESOLUTION
        if self.good_reward is not None:
            fallen = fallen & (given(inputs.chosen_reward, "chosen_reward") >= self.good_reward)
        return fallen.float() * token_nll(inputs)

    def _normalised(self, inputs: PairInputs, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
        return per_token(inputs, chosen, rejected) if self.average else (chosen, rejected)
