"""Losses of a scalar reward model on pairs, un-reduced.

Follows: L_score of MM-RLHF (arXiv 2502.10391), a Bradley-Terry likelihood; the centring term of its released training
script, which is Eisenstein et al. 2023 (arXiv 2312.09244).
Differs in: ties, on which the released trainer crashes, get the squared difference of their scores.
"""

from __future__ import annotations

from torch import Tensor

from mmrlhf.losses.links import logistic
from mmrlhf.losses.objective import check_shapes


def bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(r_chosen - r_rejected): rewards (P,) each, loss (P,)."""
    check_shapes({"chosen": chosen, "rejected": rejected})
    return logistic(chosen.float() - rejected.float())


def tie_loss(a: Tensor, b: Tensor) -> Tensor:
    """(r_a - r_b)^2 of responses that share a rank: rewards (P,) each, loss (P,), symmetric, 0 where equal."""
    check_shapes({"a": a, "b": b})
    return (a.float() - b.float()).square()


def centring(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(r_chosen + r_rejected)^2, (P,): fixes the constant that Bradley-Terry leaves free; released weight 0.01."""
    check_shapes({"chosen": chosen, "rejected": rejected})
    return (chosen.float() + rejected.float()).square()
