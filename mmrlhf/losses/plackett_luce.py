"""Plackett-Luce: the likelihood of a group's whole ranking in one term, where pairs count each response K - 1 times.

Follows: Plackett-Luce DPO (arXiv 2305.18290), appendix A.3, equation 20.
Differs in: ties. Each response competes with itself and the responses ranked below it, so tied ones are not compared
with each other; without ties this is the paper's formula, and for K = 2 it is DPO.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmrlhf.losses.objective import Objective, check_shapes


@dataclass(frozen=True, kw_only=True)
class PlackettLuce(Objective):
    """The whole ranking of a query in one term; on a pair alone it is DPO, and so are the pairs that are logged."""

    def ranking_loss(self, log_ratio: Tensor, ranks: Tensor, group_of_response: Tensor, *, num_groups: int) -> Tensor:
        """-log p(ranking) of every group (G,); log_ratio (R,): log policy - log reference; see `plackett_luce`."""
        return plackett_luce(self.beta * log_ratio.float(), ranks, group_of_response, num_groups=num_groups)


def best_of_all(scores: Tensor, ranks: Tensor, group_of_response: Tensor, *, num_groups: int) -> Tensor:
    """Cross-entropy of every group's scores with its best response as the right class (arXiv 2604.10966).

    It is the first factor of Plackett-Luce, and for two responses all of it. Differs in: of several best responses each
    is compared with the others alone, and the loss is their mean, where the release draws one of them.

    Args and returns: as `plackett_luce`.
    """
    check_shapes({"scores": scores, "ranks": ranks, "group_of_response": group_of_response})
    best = torch.full((num_groups,), torch.inf, device=ranks.device)
    best = best.scatter_reduce(0, group_of_response, ranks.float().nan_to_num(torch.inf), "amin")
    is_best = ranks == best[group_of_response]
    levels = torch.where(is_best, 1.0, torch.where(ranks.isnan(), torch.nan, 2.0))
    losses = plackett_luce(scores, levels, group_of_response, num_groups=num_groups)
    number = torch.zeros(num_groups, device=ranks.device).index_add(0, group_of_response, is_best.float())
    return losses / number.clamp(min=1)


def plackett_luce(scores: Tensor, ranks: Tensor, group_of_response: Tensor, *, num_groups: int) -> Tensor:
    """Negative log-likelihood of every group's ranking.

    Args:
        scores: (R,) implicit rewards beta * (log policy - log reference), or any scalar reward.
        ranks: (R,) 1 is best, ties share a rank, nan is unranked and takes no part.
        group_of_response: (R,) int64 in [0, num_groups).
        num_groups: G.

    Returns: (G,) float32, nats; 0 for a group without two differing ranks.
    """
    check_shapes({"scores": scores, "ranks": ranks, "group_of_response": group_of_response})
    scores = scores.float()
    same_group = group_of_response[:, None] == group_of_response[None, :]
    below = same_group & (ranks[:, None] < ranks[None, :])
    competes = below | torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    # Minus infinity only where nothing competes; the diagonal always does, so no row is all minus infinity.
    rivals = torch.where(competes, scores[None, :], torch.full_like(scores, -torch.inf)[None, :])
    terms = torch.logsumexp(rivals, dim=1) - scores
    return torch.zeros(num_groups, device=scores.device).index_add(0, group_of_response, terms)
