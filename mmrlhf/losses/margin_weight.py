"""MADPO: a weight outside the link that is above 1 for pairs of small margin and below 1 for those of large margin.

Follows: MADPO (arXiv 2510.05342), its weight w(delta) = sigmoid(c(|delta|) delta) / sigmoid(delta), 1 for
delta <= -tau, with c falling along a logistic curve from c_max through 1 at tau to c_min; and the authors' code
(sirano1004/Margin-Apative-Direct-Preference-Optimization, `loss_functions.py`).
Differs in: nothing; the weight is the quotient of two sigmoids taken in logarithms, so that it stays finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrlhf.losses.objective import Objective, PairInputs, PairScale, given
from mmrlhf.ranges import FromOne, Positive, ShareBelowOne


@dataclass(frozen=True, kw_only=True)
class MADPO(Objective):
    """DPO with a = sigmoid(c delta) / sigmoid(delta), c = c(|delta|).

    Args:
        c_max: >= 1, c far below `tau`; 1 is DPO.
        c_min: in [0, 1), c far above `tau`.
        steepness: > 0, how fast c falls (the paper's lambda), per unit of reward margin.
        tau: > 0, margin at which c is 1, and so is the weight (rewards' unit).
    """

    c_max: FromOne = 2.0
    c_min: ShareBelowOne = 0.5
    steepness: Positive = 1.0
    tau: Positive = 6.9

    needs_margin: ClassVar[bool] = True

    def coefficient(self, distance: Tensor) -> Tensor:
        """c of |delta| (P,): falls from about c_max at 0 to c_min, and is 1 at tau."""
        odds = torch.tensor((self.c_max - 1) / (1 - self.c_min), device=distance.device).log()
        return self.c_min + (self.c_max - self.c_min) * torch.sigmoid(-odds - self.steepness * (distance - self.tau))

    def scale(self, inputs: PairInputs) -> PairScale:
        margin = given(inputs.margin, "margin").float()
        weight = torch.exp(F.logsigmoid(self.coefficient(margin.abs()) * margin) - F.logsigmoid(margin))
        return PairScale.fill(inputs, b=self.beta, a=torch.where(margin > -self.tau, weight, 1.0))
