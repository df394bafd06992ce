"""gamma-PO: target margins that are handed out among the pairs of a step, more to those that are already apart.

Follows: gamma-PO (arXiv 2506.03690), its inner problem in the form of gamma-DPO: the shares p of a total margin
minimise the mean over pairs of -log sigmoid(r_i - gamma_i) + tau KL(p | uniform), with gamma_i = gamma_0 n p_i and r_i
the pair's implicit reward gap; the loss is -log sigmoid(r_i - (gamma_i - gamma_0)). So it is in the authors' code
(sunjie279/gammaPO, `xpo_trainer.py`, `gm-dpo`).
Differs in: the problem is solved to the end by bisection, where the code takes 20 steps of mirror descent; its pairs
are those of the whole step, where the code adds a queue of earlier gaps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmrlhf.losses.objective import Objective, PairInputs, PairScale
from mmrlhf.ranges import NonNegative, Positive

HALVINGS = 30  # brackets of about 1 shrink below 1e-9


@dataclass(frozen=True, kw_only=True)
class GammaPO(Objective):
    """gamma-DPO: DPO with m = gamma_i - target_margin, of mean 0 over the pairs of the call.

    Args:
        target_margin: >= 0, gamma_0, the mean target margin; 0 is DPO.
        tau: > 0, how strongly the margins are held together; large values give DPO.
    """

    target_margin: NonNegative = 1.0
    tau: Positive = 1.0

    @property
    def uses_call_statistics(self) -> bool:
        return True

    def scale(self, inputs: PairInputs) -> PairScale:
        shares = margin_shares(self.beta * self.gap(inputs), target_margin=self.target_margin, tau=self.tau)
        return PairScale.fill(inputs, b=self.beta, m=self.target_margin * (shares - 1))


def margin_shares(gaps: Tensor, *, target_margin: float, tau: float) -> Tensor:
    """n p_i (P,) float32, of mean 1: the target margins in units of their mean, for implicit reward gaps (P,).

    At the minimum, tau log(n p_i) + target_margin sigmoid(target_margin n p_i - r_i) is one number, the same for every
    pair. It rises in p_i, so it gives p_i by bisection; and the mean of n p_i rises in it, so it is found the same way.
    """
    gap, low, high = gaps.double(), 0.0, float(target_margin)
    shares = torch.ones_like(gap)
    for _ in range(HALVINGS if len(gap) > 0 else 0):
        level = (low + high) / 2
        shares = _shares_at(level, gap, target_margin, tau)
        low, high = (level, high) if float(shares.mean()) < 1 else (low, level)
    return (shares / shares.mean()).float()


def _shares_at(level: float, gap: Tensor, target_margin: float, tau: float) -> Tensor:
    """The n p_i at which the pairs' common number is `level`; the sigmoid lies in (0, 1), which brackets log(n p_i)."""
    low, high = torch.full_like(gap, (level - target_margin) / tau), torch.full_like(gap, level / tau)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found = tau * middle + target_margin * torch.sigmoid(target_margin * middle.exp() - gap)
        low, high = torch.where(found < level, middle, low), torch.where(found < level, high, middle)
    return ((low + high) / 2).exp()
