"""KTO: each response by itself is wanted or not, against how far the policy has moved altogether.

Follows: KTO (arXiv 2402.01306), equation 7: lambda_D (1 - sigmoid(beta (ratio - KL))) for a desirable response and
lambda_U (1 - sigmoid(beta (KL - ratio))) for an undesirable one, ratio = log policy - log reference, with
KL = max(0, mean ratio) of the step, without gradient.
Differs in: the paper's KL is over responses to other prompts, which costs a forward of mismatched pairs; ours is over
the step's own responses, each once, whose ratios the step has in any case. What is desirable is a rank or a reward.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmrlhf.losses.objective import Objective, PairScale, check_shapes
from mmrlhf.ranges import Finite, NonNegative


@dataclass(frozen=True, kw_only=True)
class ResponseObjective(Objective):
    """A loss of single responses with a label each; abstract. Pairs feed the curves and the supervised term.

    On a pair alone it is the sum of its two responses' losses at KL = 0.

    Args:
        desirable_weight, undesirable_weight: >= 0, lambda_D and lambda_U.
    """

    desirable_weight: NonNegative = 1.0
    undesirable_weight: NonNegative = 1.0

    @abstractmethod
    def labels(self, ranks: Tensor, rewards: Tensor | None, group_of_response: Tensor) -> Tensor:
        """1 for desirable, 0 for undesirable, nan for responses that take no part: (R,) float.

        ranks: (R,), 1 is best, nan unranked; rewards: (R,) where they are known.
        """

    def response_loss(self, log_ratio: Tensor, labels: Tensor, kl: Tensor) -> Tensor:
        """The loss of every response (R,), 0 without a label; log_ratio, labels: (R,), kl: scalar."""
        check_shapes({"log_ratio": log_ratio, "labels": labels})
        above = self.beta * (log_ratio.float() - kl)
        loss = torch.where(
            labels > 0.5,
            self.desirable_weight * torch.sigmoid(-above),
            self.undesirable_weight * torch.sigmoid(above),
        )
        return torch.where(labels.isnan(), 0.0, loss)

    def pair_loss(self, chosen: Tensor, rejected: Tensor, scale: PairScale) -> Tensor:
        wanted = self.desirable_weight * torch.sigmoid(-scale.b * chosen)
        return scale.a * (wanted + self.undesirable_weight * torch.sigmoid(scale.b * rejected))


@dataclass(frozen=True, kw_only=True)
class KTO(ResponseObjective):
    """The best-ranked responses of a query are desirable, its other ranked ones are not; unranked ones take no part."""

    def labels(self, ranks: Tensor, rewards: Tensor | None, group_of_response: Tensor) -> Tensor:
        best = torch.full_like(ranks, torch.inf).scatter_reduce(
            0, group_of_response, torch.where(ranks.isnan(), torch.inf, ranks), "amin"
        )
        return torch.where(ranks.isnan(), torch.nan, (ranks == best[group_of_response]).float())


@dataclass(frozen=True, kw_only=True)
class KTOByReward(ResponseObjective):
    """Responses with a reward above `threshold` are desirable, the others are not: no ranks, no second response needed.

    Args:
        threshold: the reward.
    """

    threshold: Finite = 0.0

    needs_margin: ClassVar[bool] = True

    def labels(self, ranks: Tensor, rewards: Tensor | None, group_of_response: Tensor) -> Tensor:
        assert rewards is not None, "the method asks for the table"
        return (rewards > self.threshold).float()
