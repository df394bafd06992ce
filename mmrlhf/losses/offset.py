"""ODPO: the margin as an offset that the gap has to reach, where MM-DPO makes it a slope.

Follows: ODPO (arXiv 2402.10571), its training objective: -log sigmoid(beta z - Delta) with the offset
Delta = alpha f(score of chosen - score of rejected), f = log (as in the authors' code, rycolab/odpo).
Differs in: delta <= 0 has no logarithm (the authors' code gets nan or minus infinity); delta is raised to `min_margin`
first. Their quotient of scores in place of the difference is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mmrlhf.losses.objective import Objective, PairInputs, PairScale, given
from mmrlhf.ranges import NonNegative, Positive


def _unchanged(margin: Tensor) -> Tensor:
    return margin


_OFFSETS: dict[str, Callable[[Tensor], Tensor]] = {"log": torch.log, "linear": _unchanged}


@dataclass(frozen=True, kw_only=True)
class ODPO(Objective):
    """m = alpha * f(max(delta, min_margin)), b = beta.

    Args:
        alpha: >= 0, weight of the offset; 0 is DPO.
        offset: f, `log` or `linear`.
        min_margin: > 0, what a smaller margin is raised to (rewards' unit).
    """

    alpha: NonNegative = 1.0
    offset: Literal["log", "linear"] = "log"
    min_margin: Positive = 1e-3

    needs_margin: ClassVar[bool] = True

    def scale(self, inputs: PairInputs) -> PairScale:
        margin = given(inputs.margin, "margin").float().clamp(min=self.min_margin)
        return PairScale.fill(inputs, b=self.beta, m=self.alpha * _OFFSETS[self.offset](margin))
