"""EXO: the reverse KL divergence from the labels' distribution, where DPO takes the forward one.

Follows: efficient exact optimization (arXiv 2402.00856), equation 16, EXO-pref for two responses: with p =
sigmoid(beta z), KL(p | 1 - e) = p log(p / (1 - e)) + (1 - p) log((1 - p) / e).
Differs in: nothing. Without smoothing a label's distribution has a zero, and the divergence is infinite.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, log1p

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrlhf.losses.objective import Objective, PairScale
from mmrlhf.ranges import InsideHalf


@dataclass(frozen=True, kw_only=True)
class EXO(Objective):
    """loss = KL((p, 1 - p) | (1 - e, e)), p = sigmoid(beta z): zero where p = 1 - e.

    Args:
        label_smoothing: e, probability that a label is wrong, in (0, 0.5).
    """

    label_smoothing: InsideHalf = 1e-3

    def pair_loss(self, chosen: Tensor, rejected: Tensor, scale: PairScale) -> Tensor:
        logit = scale.b * (chosen - rejected)
        right = torch.sigmoid(logit) * (F.logsigmoid(logit) - log1p(-self.label_smoothing))
        wrong = torch.sigmoid(-logit) * (F.logsigmoid(-logit) - log(self.label_smoothing))
        return scale.a * (right + wrong)
