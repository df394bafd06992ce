"""APO: losses that say of each response by itself whether it should become likelier.

Follows: anchored preference optimization (arXiv 2408.06266), equations 7 (APO-zero) and 8 (APO-down), with r = beta
log-ratio: zero is [1 - sigmoid(r_chosen)] + sigmoid(r_rejected), down is
sigmoid(r_chosen) + [1 - sigmoid(r_chosen - r_rejected)].
Differs in: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmrlhf.losses.objective import Objective, PairScale


@dataclass(frozen=True, kw_only=True)
class APOZero(Objective):
    """Chosen responses become likelier and rejected ones less likely: for data better than the policy."""

    def pair_loss(self, chosen: Tensor, rejected: Tensor, scale: PairScale) -> Tensor:
        return scale.a * (torch.sigmoid(-scale.b * chosen) + torch.sigmoid(scale.b * rejected))


@dataclass(frozen=True, kw_only=True)
class APODown(Objective):
    """Both responses become less likely, rejected ones more so: for a policy better than the data."""

    def pair_loss(self, chosen: Tensor, rejected: Tensor, scale: PairScale) -> Tensor:
        return scale.a * (torch.sigmoid(scale.b * chosen) + torch.sigmoid(scale.b * (rejected - chosen)))
