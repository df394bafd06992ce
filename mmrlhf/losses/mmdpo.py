"""MM-DPO: DPO with one beta per pair, taken from a reward model's margin.

Follows: MM-RLHF (arXiv 2502.10391), section on MM-DPO: DPO's loss (arXiv 2305.18290, equation 7) with
beta(delta) = beta_ori (1 + w (1 - exp(-k delta))) in place of beta, plus gamma times the chosen response's NLL.
Differs in: the NLL is per token, so that gamma does not depend on response length. What happens at delta < 0 and on
which scale delta is read are settings (see margin_beta.py). The released code computes this beta and then overwrites
it with another one (see call_beta.py, ReleasedImplicitBeta); here the margin reaches the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from mmrlhf.losses.margin_beta import MarginBeta, MarginScale, NegativeMargin
from mmrlhf.losses.objective import Objective, PairInputs, PairScale, given
from mmrlhf.ranges import NonNegative, Positive


@dataclass(frozen=True, kw_only=True)
class MarginBetaObjective(Objective):
    """An objective built on beta(delta); abstract.

    Args:
        w: >= 0, how far beta may rise with the margin: up to (1 + w) * beta; 0 is DPO.
        k: > 0, how fast it rises, per unit of the scaled margin.
        negative_margin: what a pair gets that the reward model contradicts: `floor` (beta), `signed` (falls to
            (1 - w) * beta) or `drop` (weight 0); see `MarginBeta`.
        margin_scale: `raw`, `standardise` (by the root mean square over the step's pairs), or a number T: margin / T.
    """

    w: NonNegative = 0.5
    k: Positive = 0.5
    negative_margin: NegativeMargin = "floor"
    margin_scale: MarginScale = "raw"

    needs_margin: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.margin_beta

    @cached_property
    def margin_beta(self) -> MarginBeta:
        """The function from margins to betas."""
        return MarginBeta(self.beta, self.w, self.k, self.negative_margin, self.margin_scale)

    @property
    def uses_call_statistics(self) -> bool:
        return self.margin_beta.uses_call_statistics

    @property
    def jumps_at_equal_rewards(self) -> str | None:
        return self.margin_beta.jumps_at_zero


@dataclass(frozen=True, kw_only=True)
class MMDPO(MarginBetaObjective):
    """loss = -log sigmoid(beta(delta) * z) + sft_weight * NLL(chosen); w = 0 is DPO."""

    def scale(self, inputs: PairInputs) -> PairScale:
        beta, keep = self.margin_beta(given(inputs.margin, "margin"))
        return PairScale.fill(inputs, b=beta, a=keep)
