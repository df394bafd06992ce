"""DA-DPO: a beta that grows linearly with the distance of the two responses' scores, so that easy pairs saturate.

Follows: DA-DPO (arXiv 2601.00623), its training loss with a beta per pair; in the authors' code (Artanic30/DA-DPO,
`da_dpo.py`) it is beta * alpha * (1 + |score of chosen - score of rejected|).
Differs in: the scores are the reward model's in place of those of two vision-language models, which lie in [0, 1];
`temperature` brings margins to that scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mmrlhf.losses.objective import Objective, PairInputs, PairScale, given
from mmrlhf.ranges import Positive


@dataclass(frozen=True, kw_only=True)
class DADPO(Objective):
    """DPO with b = beta * alpha * (1 + |delta| / temperature); the sign of the margin does not matter.

    Args:
        alpha: > 0, factor of beta at margin 0; 1 is DPO there.
        temperature: > 0, the margin at which beta has doubled (rewards' unit).
    """

    alpha: Positive = 1.0
    temperature: Positive = 1.0

    needs_margin: ClassVar[bool] = True

    def scale(self, inputs: PairInputs) -> PairScale:
        distance = given(inputs.margin, "margin").float().abs() / self.temperature
        return PairScale.fill(inputs, b=self.beta * self.alpha * (1 + distance))
