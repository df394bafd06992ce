"""NCA: noise-contrastive alignment, in which a chosen response's likelihood is held where it is best.

Follows: noise-contrastive alignment (arXiv 2402.05369), its pairwise form with r = beta log-ratio:
-log sigmoid(r_chosen) - 1/2 log sigmoid(-r_chosen) - 1/2 log sigmoid(-r_rejected).
Differs in: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmrlhf.losses.links import logistic
from mmrlhf.losses.objective import Objective, PairScale


@dataclass(frozen=True, kw_only=True)
class NCA(Objective):
    """l(r_chosen) + [l(-r_chosen) + l(-r_rejected)] / 2, l the logistic link; least where sigmoid(r_chosen) = 2/3."""

    def pair_loss(self, chosen: Tensor, rejected: Tensor, scale: PairScale) -> Tensor:
        good, bad = scale.b * chosen, scale.b * rejected
        return scale.a * (logistic(good) + (logistic(-good) + logistic(-bad)) / 2)
