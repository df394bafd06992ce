"""Objectives that swap the logistic link for another one: hinge and IPO.

Follows: SLiC-HF (arXiv 2305.10425), its calibration loss max(0, delta - log p(chosen) + log p(rejected)), in the form
that RSO (arXiv 2309.06657) gives it, hinge-norm: max(0, 1 - beta z), on log-ratios to a reference and with delta = 1;
IPO (arXiv 2310.12036), equation 17.
Differs in: IPO averages log-ratios per token by default, as its authors confirmed to TRL; the paper's formula sums.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmrlhf.losses.length_normalised import per_token
from mmrlhf.losses.links import hinge, squared
from mmrlhf.losses.objective import Objective, PairInputs, PairScale


@dataclass(frozen=True, kw_only=True)
class HingeDPO(Objective):
    """loss = max(0, 1 - beta * z)."""

    def link(self, logit: Tensor) -> Tensor:
        return hinge(logit)


@dataclass(frozen=True, kw_only=True)
class IPO(Objective):
    """loss = (z - 1 / (2 beta))^2, so b = 1 and the implicit rewards are plain log-ratios; beta is the paper's tau.

    Args:
        average: divide each log-ratio by its token count.
    """

    average: bool = True

    def link(self, logit: Tensor) -> Tensor:
        return squared(logit)

    def scores(self, inputs: PairInputs) -> tuple[Tensor, Tensor]:
        ratios = super().scores(inputs)
        return per_token(inputs, *ratios) if self.average else ratios

    def scale(self, inputs: PairInputs) -> PairScale:
        return PairScale.fill(inputs, b=1.0, m=1 / (2 * self.beta))
