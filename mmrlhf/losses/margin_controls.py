"""Arms that a comparison with MM-DPO needs: other places for the margin, and margins that carry less information.

Follows: MM-RLHF (arXiv 2502.10391) for beta(delta); soft labels are conservative DPO's cross-entropy with a label per
pair, the baseline of arXiv 2409.06691.
Differs in: the paper has none of these controls. ShuffledMargin keeps the distribution of MM-DPO's betas and
MeanBetaDPO their mean; both take away which pair has which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmrlhf.losses.call_beta import RESOLUTION
from mmrlhf.losses.mmdpo import MarginBetaObjective
from mmrlhf.losses.objective import Objective, PairInputs, PairScale, given
from mmrlhf.losses.seeded import generator_for
from mmrlhf.ranges import Finite, Natural, Positive


@dataclass(frozen=True, kw_only=True)
class OutsideWeight(MarginBetaObjective):
    """MM-DPO's factor as a weight outside the link: a = beta(delta) / beta, b = beta."""

    def scale(self, inputs: PairInputs) -> PairScale:
        beta, keep = self.margin_beta(given(inputs.margin, "margin"))
        return PairScale.fill(inputs, b=self.beta, a=keep * beta / self.beta)


@dataclass(frozen=True, kw_only=True)
class ShuffledMargin(MarginBetaObjective):
    """MM-DPO with the margins permuted among the pairs of the call.

    The permutation follows from `seed` and the margins themselves, so a resumed run repeats it; with one pair in the
    call nothing can move, and the pair keeps its margin.

    Args:
        seed: of the permutation.
    """

    seed: Natural = 0

    @property
    def uses_call_statistics(self) -> bool:
        return True

    @property
    def jumps_at_equal_rewards(self) -> str | None:
        return "a permutation that follows from the margins"

    def scale(self, inputs: PairInputs) -> PairScale:
        margin = given(inputs.margin, "margin")
        order = torch.randperm(len(margin), generator=generator_for(self.seed, margin)).to(margin.device)
        beta, keep = self.margin_beta(margin[order])
        return PairScale.fill(inputs, b=beta, a=keep)


@dataclass(frozen=True, kw_only=True)
class MeanBetaDPO(MarginBetaObjective):
    """DPO whose beta is the mean of MM-DPO's betas over the kept pairs of the call: the same strength, no ordering."""

    @property
    def uses_call_statistics(self) -> bool:
        return True

    def scale(self, inputs: PairInputs) -> PairScale:
        beta, keep = self.margin_beta(given(inputs.margin, "margin"))
        mean = (beta * keep).sum() / keep.sum().clamp(min=1)
        mean = torch.where(keep.sum() > 0, mean, torch.full_like(mean, self.beta))
        return PairScale.fill(inputs, b=mean.expand_as(beta), a=keep)


@dataclass(frozen=True, kw_only=True)
class SoftLabels(Objective):
    """Cross-entropy against the reward model's own preference: q = sigmoid(delta / temperature), b = beta.

    Args:
        temperature: > 0, margin at which the label is sigmoid(1) = 0.73.
    """

    temperature: Positive = 1.0

    needs_margin: ClassVar[bool] = True

    def scale(self, inputs: PairInputs) -> PairScale:
        return PairScale.fill(inputs, b=self.beta, q=torch.sigmoid(_margin(inputs) / self.temperature))


@dataclass(frozen=True, kw_only=True)
class HardFilter(Objective):
    """DPO on the pairs with delta > threshold; the others have weight 0 in the preference loss.

    Args:
        threshold: pairs with a margin at or below this have weight 0.
    """

    threshold: Finite = 0.0

    needs_margin: ClassVar[bool] = True

    @property
    def jumps_at_equal_rewards(self) -> str | None:
        # far above 0 no pair would have weight at the first step, and so at none
        return f"threshold={self.threshold:g}" if self.threshold > -RESOLUTION else None

    def scale(self, inputs: PairInputs) -> PairScale:
        return PairScale.fill(inputs, b=self.beta, a=(_margin(inputs) > self.threshold).float())


def _margin(inputs: PairInputs) -> Tensor:
    return given(inputs.margin, "margin").float()
